"""The brain signal: reading, matching and preparing it, and the networks that turn it into vectors."""
