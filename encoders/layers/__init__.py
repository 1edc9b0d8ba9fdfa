"""Blocks that at least two networks share, one per module."""
