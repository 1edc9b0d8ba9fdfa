"""Brain vectors meet CLIP vectors: targets, losses, the training loop, retrieval and confidence."""
