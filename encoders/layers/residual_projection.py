"""The projection head of NICE, ATM and UBP: linear, residual GELU layer, layer norm."""

from torch import Tensor, nn


class ResidualProjection(nn.Module):
    """Project features to the target width and refine them with one residual GELU layer.

    Parameters
    ----------
    n_features : int
        Input width.
    embed_dim : int
        Output width.
    dropout : float
        After the residual layer.

    References
    ----------
    Song et al. 2024 (NICE), arXiv:2308.13234; Wu et al. 2025 (UBP).
    """

    def __init__(self, n_features: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, embed_dim)
        self.residual = nn.Sequential(nn.GELU(), nn.Linear(embed_dim, embed_dim), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(b, n_features)`` to ``(b, embed_dim)``."""
        return self.refine(self.linear(features))

    def refine(self, hidden: Tensor) -> Tensor:
        """Apply what follows the first dense layer, ``(..., embed_dim)`` to the same."""
        out: Tensor = self.norm(hidden + self.residual(hidden))
        return out
