"""A classifier on top of any encoder: the encoder keeps its own output, the head is one dense layer."""

from torch import Tensor, nn


class BrainClassifier(nn.Module):
    """Name one of ``n_classes`` from an encoder's embedding.

    Parameters
    ----------
    encoder : nn.Module
        ``forward(data, positions, subject) -> (b, embed_dim)``; its weights stand under ``encoder.`` in the state.
    embed_dim : int
        Width of the encoder's output.
    n_classes : int

    Raises
    ------
    ValueError
        If there are fewer than two classes.
    """

    def __init__(self, encoder: nn.Module, embed_dim: int, n_classes: int) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"BrainClassifier got n_classes={n_classes}, expected at least 2; count the labels")
        self.encoder = encoder
        self.head = nn.Linear(embed_dim, n_classes)

    def embed(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return the encoder's own embeddings, ``(b, embed_dim)``, bit for bit."""
        embeds: Tensor = self.encoder(data, positions, subject)
        return embeds

    def classify(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return logits, ``(b, n_classes)``, a linear function of the embedding."""
        logits: Tensor = self.head(self.embed(data, positions, subject))
        return logits

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return logits, ``(b, n_classes)``; see `classify`."""
        return self.classify(data, positions, subject)
