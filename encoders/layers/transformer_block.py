"""The transformer encoder that several networks share: pre-norm blocks on fused scaled-dot-product attention.

Written out instead of `torch.nn.TransformerEncoderLayer`, because that one switches to another implementation in
evaluation, and hides the keys and values that a stream would keep.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.layers.causal import KeysAndValues, attend_to_past

Caches = tuple[KeysAndValues | None, ...]


class TransformerBlock(nn.Module):
    """Self-attention and a GELU layer, each normalised before and added after.

    Parameters
    ----------
    width : int
        Features per token, a multiple of ``heads``.
    heads : int
        Attention heads.
    dropout : float
        On both results before they are added. None on the attention itself and inside the GELU layer: on a processor
        drawing those would cost a quarter of the training time.
    causal : bool
        Tokens see themselves and earlier ones only.
    expansion : int
        Hidden width of the GELU layer over ``width``.

    Raises
    ------
    ValueError
        If the width is no multiple of the heads.

    References
    ----------
    Vaswani et al. 2017, arXiv:1706.03762; normalisation first: Xiong et al. 2020, arXiv:2002.04745.
    """

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = False, expansion: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"attention of width {width} cannot be shared by {heads} heads; make the width a multiple of the heads"
            )
        self.heads, self.causal = heads, causal
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.hidden = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, expansion * width),
            nn.GELU(),
            nn.Linear(expansion * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Let tokens attend.

        Parameters
        ----------
        tokens : Tensor, (b, n, width), float32

        Returns
        -------
        Tensor, (b, n, width), float32
        """
        query, key, value = self._split(self.query_key_value(self.attention_norm(tokens)))
        return self._add(tokens, F.scaled_dot_product_attention(query, key, value, is_causal=self.causal))

    def step(self, tokens: Tensor, cache: KeysAndValues | None) -> tuple[Tensor, KeysAndValues]:
        """Continue a causal block by the next tokens, ``(b, n, width)``; the state is keys and values so far."""
        assert self.causal, "only a causal block has steps"
        query, key, value = self._split(self.query_key_value(self.attention_norm(tokens)))
        heard, cache = attend_to_past(query, key, value, cache)
        return self._add(tokens, heard), cache

    def _add(self, tokens: Tensor, heard: Tensor) -> Tensor:
        # (b, h, n, f) -> (b, n, h * f)
        tokens = tokens + self.project(heard.transpose(1, 2).flatten(2))
        out: Tensor = tokens + self.hidden(tokens)
        return out

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        # (b, n, parts * h * f) -> parts of (b, h, n, f)
        n_epochs, n_tokens, _ = projected.shape
        head_width = self.query_key_value.in_features // self.heads
        parts = projected.view(n_epochs, n_tokens, -1, self.heads, head_width)
        return parts.permute(2, 0, 3, 1, 4).unbind(0)


class TransformerEncoder(nn.Module):
    """A stack of blocks. No normalisation follows the last one: it would take the tokens' amplitudes from the read-out.

    Parameters
    ----------
    width, heads, dropout, causal, expansion
        As `TransformerBlock`.
    n_layers : int
        Blocks.
    """

    def __init__(
        self, width: int, heads: int, n_layers: int, dropout: float, causal: bool = False, expansion: int = 4
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout, causal, expansion) for _ in range(n_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(b, n, width)`` to ``(b, n, width)``."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def step(self, tokens: Tensor, caches: Caches) -> tuple[Tensor, Caches]:
        """Continue a causal stack by the next tokens, with one cache per block; all None at the beginning."""
        after: list[KeysAndValues | None] = []
        for block, cache in zip(self.blocks, caches, strict=True):
            assert isinstance(block, TransformerBlock)
            tokens, grown = block.step(tokens, cache)
            after.append(grown)
        return tokens, tuple(after)


class PatchTransformer(nn.Module):
    """Cut every row's time course into patches and let the patches of a row attend to each other.

    Rows (sensors) share all weights and do not see each other.

    Parameters
    ----------
    n_times : int
        Samples per row; zeros are appended to fill the last patch.
    patch : int
        Samples per patch.
    width, heads, n_layers, dropout, expansion
        As `TransformerEncoder`. There are sensors times patches of tokens, so the GELU layer is narrow.

    Attributes
    ----------
    n_patches : int
        Tokens per row.
    """

    def __init__(
        self, n_times: int, patch: int, width: int, heads: int, n_layers: int, dropout: float, expansion: int = 2
    ) -> None:
        super().__init__()
        self.patch = patch
        self.n_patches = -(-n_times // patch)
        self.padding = self.n_patches * patch - n_times
        self.embed = nn.Linear(patch, width)
        self.places = nn.Parameter(0.02 * torch.randn(self.n_patches, width))
        self.encoder = TransformerEncoder(width, heads, n_layers, dropout, expansion=expansion)

    def forward(self, data: Tensor) -> Tensor:
        """Map ``(b, n, t)`` rows to ``(b, n, n_patches, width)`` tokens."""
        n_epochs, n_rows, _ = data.shape
        patches = F.pad(data, (0, self.padding)).view(n_epochs * n_rows, self.n_patches, self.patch)
        tokens: Tensor = self.encoder(self.embed(patches) + self.places)
        return tokens.view(n_epochs, n_rows, self.n_patches, -1)
