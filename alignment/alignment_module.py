"""What one training step runs: encoders, fusion, the map on the picture's side and the loss's learned numbers."""

from collections.abc import Mapping

from torch import Tensor, nn

from alignment.loss_choice import AnyLossConfig, build_loss
from alignment.losses import AlignmentLossConfig
from alignment.matching_loss import Matching
from alignment.target_map import TargetMap, TargetMapConfig
from encoders.cross_attention import CrossAttentionFusion
from encoders.fusion import Fusion
from encoders.layers.constraints import penalties


class AlignmentModule(nn.Module):
    """Encoders, fusion and temperature in one forward call; every combination of modalities is trained in every step.

    With separate encoders the fused term does not reach into them, so each stays as good as one trained alone.
    Without ``target_map``, targets have the width of the answers.
    """

    def __init__(
        self,
        fusion: Fusion,
        positions: Mapping[str, Tensor],
        config: AnyLossConfig,
        target_map: TargetMap | None = None,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.positions = dict(positions)
        self.alignment_loss = build_loss(config, fusion.embed_dim)
        self.image_map = target_map or TargetMap(TargetMapConfig(), fusion.embed_dim)
        self.image_map.requires_grad_(self.alignment_loss.image_map)
        unfit = self.alignment_loss.reads_targets or not self.alignment_loss.image_map
        if unfit and not self.image_map.keeps_targets:
            raise ValueError(
                f"target_map changes the targets, but the loss {config.name!r} compares answers with the targets "
                "themselves; use a contrastive loss with image_map alone, info_nce for example"
            )
        self.matching_weight = config.matching_weight if isinstance(config, AlignmentLossConfig) else 0.0
        self.matching = None
        if self.matching_weight > 0:
            if not isinstance(fusion, CrossAttentionFusion):
                raise ValueError(
                    f"matching_weight {self.matching_weight} has no effect with {type(fusion).__name__}, expected 0; "
                    "set it to 0 or use the fusion cross_attention"
                )
            self.matching = Matching(fusion.embed_dim)

    def forward(
        self,
        data: Mapping[str, Tensor],
        subject: Tensor,
        target: Tensor,
        stimulus: Tensor,
        available: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return answers per combination, mapped targets, the loss's learned numbers, and extra loss terms."""
        answers = self.fusion.answers(data, self.positions, subject, available)
        learned, extra = self.alignment_loss(), {}
        if self.matching is not None:
            assert isinstance(self.fusion, CrossAttentionFusion)
            if available:
                raise ValueError("the matching loss needs every modality in every row; set matching_weight to 0")
            scale = learned["logit_scale"].detach()
            loss = self.matching(self.fusion, data, self.positions, subject, stimulus, scale)
            extra["matching"] = self.matching_weight * loss
        penalty = penalties(self.fusion)
        if penalty is not None:
            extra["penalty"] = penalty
        # with people of their own per modality a target belongs to no single person
        person = subject if subject.ndim == 1 else None
        return answers, self.image_map(target, person), learned, extra
