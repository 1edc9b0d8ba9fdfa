"""Vectors to pictures: the image decoders, the bundle that holds a trained chain, and the pipeline that composes it."""
