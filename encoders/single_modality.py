"""One modality and nothing else: the baseline of every fusion, bit for bit the bare encoder."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from encoders.build import AnyEncoderConfig, SignalShape
from encoders.separate_encoders import SeparateEncoders, build_encoders


class SingleFusionConfig(BaseModel):
    """`SingleModality` has no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["single"] = "single"

    def build(
        self, encoders: Mapping[str, AnyEncoderConfig], shapes: Mapping[str, SignalShape], embed_dim: int
    ) -> "SingleModality":
        """Build the untrained encoder."""
        return SingleModality(build_encoders(encoders, shapes, embed_dim), embed_dim)


class SingleModality(SeparateEncoders):
    """Answer with the embedding of the only encoder.

    Parameters
    ----------
    encoders : Mapping of str to nn.Module
        Exactly one.
    embed_dim : int

    Raises
    ------
    ValueError
        If there is not exactly one encoder.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], embed_dim: int) -> None:
        super().__init__(encoders, embed_dim)
        if len(encoders) != 1:
            raise ValueError(
                f"the fusion 'single' got the modalities {list(encoders)}, expected exactly one; remove the others or "
                "use another fusion, for example 'late'"
            )

    def combine(self, embeds: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        """Return the embedding of the only modality."""
        return embeds[self.modalities[0]]
