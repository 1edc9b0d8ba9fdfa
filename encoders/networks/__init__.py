"""Published networks from brain signals to embeddings, one file each; build them through ``encoders.build``."""
