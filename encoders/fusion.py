"""From a config to a fusion: the union of known fusions of one or several modalities.

Every fusion is a module with ``modalities``, ``embed_dim``, ``forward(data, positions, subject, available=None) ->
(b, embed_dim)`` for whatever is present, and ``answers(data, positions, subject)`` for training: the answer of every
modality alone and of all together.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from encoders.aggregate_fusion import AddFusionConfig, AggregateFusion, AggregateFusionConfig, ConcatFusionConfig
from encoders.build import AnyEncoderConfig, SignalShape
from encoders.cross_attention import CrossAttentionFusion, CrossAttentionFusionConfig
from encoders.early_fusion import EarlyFusion, EarlyFusionConfig
from encoders.half_concat import HalfConcatFusion, HalfConcatFusionConfig
from encoders.late_fusion import LateFusion, LateFusionConfig
from encoders.single_modality import SingleFusionConfig, SingleModality

AnyFusionConfig = (
    AddFusionConfig
    | AggregateFusionConfig
    | ConcatFusionConfig
    | CrossAttentionFusionConfig
    | EarlyFusionConfig
    | HalfConcatFusionConfig
    | LateFusionConfig
    | SingleFusionConfig
)  # fmt: skip
Fusion = AggregateFusion | CrossAttentionFusion | EarlyFusion | HalfConcatFusion | LateFusion | SingleModality


def _named(value: Any) -> Any:
    """Fill in the name that configs of the time of one fusion did not have."""
    return {"name": "late", **value} if isinstance(value, Mapping) else value


FusionConfig = Annotated[Annotated[AnyFusionConfig, Field(discriminator="name")], BeforeValidator(_named)]


def build_fusion(
    config: AnyFusionConfig,
    encoders: Mapping[str, AnyEncoderConfig],
    shapes: Mapping[str, SignalShape],
    embed_dim: int,
) -> Fusion:
    """Build untrained encoders and their fusion.

    Parameters
    ----------
    config : FusionConfig
        One member of the union, for example ``LateFusionConfig()``.
    encoders : Mapping of str to EncoderConfig
        Per modality.
    shapes : Mapping of str to SignalShape
        What the data decides, for the same modalities.
    embed_dim : int
        Width of the target space.

    Returns
    -------
    Fusion

    Raises
    ------
    ValueError
        If the fusion cannot be made of these encoders and shapes.
    """
    return config.build(encoders, shapes, embed_dim)
