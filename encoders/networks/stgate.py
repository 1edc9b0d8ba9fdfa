"""STGATE: a transformer per sensor, a graph that each epoch draws for itself, graph attention on it.

The paper's abstract gives the parts; the score formulas come from a short third-party excerpt. Widths, the patches, the
read-out and how the graph enters the attention are our choices, and the invariants are what is tested. Scores are
standardised within one epoch: over the batch axis, as in that excerpt, one epoch's graph would depend on its mates.
"""

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from encoders.layers.graph_attention import GATv2
from encoders.layers.residual_projection import ResidualProjection
from encoders.layers.signal_shape import SignalShape
from encoders.layers.subject_layers import SubjectLayers
from encoders.layers.transformer_block import PatchTransformer

EPSILON = 1e-6


class STGATEConfig(BaseModel):
    """Sizes of `STGATE`; 8 heads, 2 layers and 10 edges per node are as reported, the rest is ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: ClassVar[str] = "Li et al. 2023, Front. Hum. Neurosci. 17:1169949"

    name: Literal["stgate"] = "stgate"
    width: int = Field(64, gt=0, description="features per token and per node, a multiple of heads")
    heads: int = Field(8, gt=0, description="of the transformer and of the graph attention")
    layers: int = Field(2, gt=0, description="transformer layers")
    patch: float = Field(0.1, gt=0, description="time per token, s")
    top_k: int = Field(10, gt=0, description="sensors that each sensor listens to, besides itself")
    dropout: float = Field(0.25, ge=0, lt=1)
    subject_layers: bool = Field(False, description="one channel mixing per person before the transformer (ours)")

    def build(self, shape: SignalShape, embed_dim: int) -> "STGATE":
        """Build the untrained network."""
        return STGATE(self, shape, embed_dim)


class GraphScores(nn.Module):
    """Score how much each node should listen to each other one: ``V tanh(P + b)``, ``P = (x w) W``.

    Parameters
    ----------
    n_nodes : int
    n_pooled : int
        Length of the axis that ``w`` sums.
    n_kept : int
        Length of the axis that ``W`` maps to nodes.
    """

    def __init__(self, n_nodes: int, n_pooled: int, n_kept: int) -> None:
        super().__init__()
        self.pool = nn.Parameter(torch.randn(n_pooled) / n_pooled**0.5)
        self.to_nodes = nn.Parameter(torch.randn(n_kept, n_nodes) / n_kept**0.5)
        self.bias = nn.Parameter(torch.zeros(n_nodes, n_nodes))
        self.mix = nn.Parameter(torch.randn(n_nodes, n_nodes) / n_nodes**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(b, n, n_kept, n_pooled)`` to ``(b, n, n)``, mean 0 and standard deviation 1 within each epoch."""
        scores = self.mix @ torch.tanh(features @ self.pool @ self.to_nodes + self.bias)
        scores = scores - scores.mean(dim=(1, 2), keepdim=True)
        return scores / (scores.square().mean(dim=(1, 2), keepdim=True) + EPSILON).sqrt()


class STGATE(nn.Module):
    """Describe each sensor's time course, decide who listens to whom, pass messages once, project.

    Parameters
    ----------
    config : STGATEConfig
    shape : SignalShape
        Channels and samples are fixed by the scores and the dense layer.
    embed_dim : int
        Width of the output.

    Raises
    ------
    ValueError
        If there are not more channels than ``top_k``, or the epoch is shorter than one patch.

    References
    ----------
    Li, Pan, Huang, Pan and Wang 2023, "STGATE: spatial-temporal graph attention network with a transformer encoder for
    EEG-based emotion recognition", Front. Hum. Neurosci. 17:1169949. Their accuracies on SEED are not claimed here.
    """

    prior: Tensor

    def __init__(self, config: STGATEConfig, shape: SignalShape, embed_dim: int) -> None:
        super().__init__()
        n, patch = shape.n_channels, max(round(config.patch * shape.sfreq), 1)
        if n <= config.top_k:
            raise ValueError(
                f"stgate with top_k={config.top_k} needs more than {config.top_k} channels, got {n}; lower top_k"
            )
        if shape.n_times < patch:
            raise ValueError(
                f"stgate needs epochs of at least {patch} samples at {shape.sfreq:g} Hz, got {shape.n_times}; "
                "lengthen the window or shorten patch"
            )
        self.top_k = config.top_k
        self.token_width = config.width
        self.people = SubjectLayers(n, shape.n_subjects, init="identity") if config.subject_layers else None
        self.transformer = PatchTransformer(
            shape.n_times, patch, config.width, config.heads, config.layers, config.dropout
        )
        n_steps = self.transformer.n_patches
        self.spatial_scores = GraphScores(n, n_pooled=n_steps, n_kept=config.width)
        self.temporal_scores = GraphScores(n, n_pooled=config.width, n_kept=n_steps)
        self.register_buffer("prior", torch.zeros(n, n))
        self.dropout = nn.Dropout(config.dropout)
        self.graph = GATv2(
            n_steps * config.width, config.width // config.heads, config.heads, concat=True, self_weights="separate"
        )
        self.head = ResidualProjection(n * config.width, embed_dim, config.dropout)

    def set_graph(self, adjacency: Tensor) -> None:
        """Favour the edges of a known graph; kept with the weights.

        The adjacency is standardised, as the learned scores are, and added to them before the strongest edges are
        chosen. Estimate it on training epochs only.

        Parameters
        ----------
        adjacency : Tensor, (n_channels, n_channels), float32
            For example from `encoders.connectivity.adjacency`; ``[i, j]``: how much ``i`` listens to ``j``.

        Raises
        ------
        ValueError
            If the shape is another one, a weight is not finite, or all are equal.
        """
        if adjacency.shape != self.prior.shape or not adjacency.isfinite().all() or adjacency.std() == 0:
            raise ValueError(
                f"graph prior of shape {tuple(adjacency.shape)} with standard deviation {float(adjacency.std()):g}, "
                f"expected {tuple(self.prior.shape)}, finite and not constant; estimate it on this montage"
            )
        self.prior.copy_((adjacency - adjacency.mean()) / adjacency.std(correction=0))

    def adjacency(self, features: Tensor) -> Tensor:
        """Draw each epoch's graph from its transformer features.

        Parameters
        ----------
        features : Tensor, (b, n, s, width), float32

        Returns
        -------
        Tensor, (b, n, n), float32
            ``top_k`` positive weights per row that sum to 1, none on the diagonal.
        """
        scores = self.spatial_scores(features.transpose(2, 3)) + self.temporal_scores(features) + self.prior
        itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
        kept, neighbour = scores.masked_fill(itself, -torch.inf).topk(self.top_k, dim=-1)
        return torch.zeros_like(scores).scatter(-1, neighbour, kept.softmax(dim=-1))

    def features(self, data: Tensor, subject: Tensor) -> Tensor:
        """Map ``(b, c, t)`` epochs to transformer features ``(b, c, s, width)``."""
        if self.people is not None:
            data = self.people(data, subject)
        features: Tensor = self.transformer(data)
        return features

    def tokens(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Return what stands before the dense layers: one token per channel, (b, c, width)."""
        features = self.features(data, subject)
        nodes = self.graph(self.dropout(features.flatten(2)), self.adjacency(features))
        return nn.functional.elu(nodes)

    def forward(self, data: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """Embed epochs.

        Parameters
        ----------
        data : Tensor, (b, c, t), float32
            Preprocessed, unitless.
        positions : Tensor, (c, 2) or (b, c, 2), float32
            Not used.
        subject : Tensor, (b,), int64
            Used only with ``subject_layers``.

        Returns
        -------
        Tensor, (b, embed_dim), float32
        """
        tokens = self.tokens(data, positions, subject)
        embeds: Tensor = self.head(self.dropout(tokens.flatten(1)))
        return embeds
