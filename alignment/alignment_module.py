"""What one training step runs: encoders, fusion, and for every answer the loss's learned numbers and picture map."""

from collections.abc import Mapping

from torch import Tensor, nn

from alignment.loss_choice import AnyLossConfig, build_loss
from alignment.losses import AlignmentLossConfig
from alignment.matching_loss import Matching
from alignment.target_map import TargetMap, TargetMapConfig
from encoders.cross_attention import CrossAttentionFusion
from encoders.fusion import Fusion
from encoders.layers.constraints import penalties
from encoders.modality import combination
from encoders.separate_encoders import SeparateEncoders


class AnswerTerm(nn.Module):
    """The loss of one answer: its learned numbers (temperature), memory, and map on the picture's side.

    Every answer has its own. With common ones the fused answers, which are easier, set the temperature and the map by
    which EEG alone and MEG alone are trained.
    """

    def __init__(self, config: AnyLossConfig, image_map: TargetMap) -> None:
        super().__init__()
        self.loss = build_loss(config, image_map.embed_dim)
        self.image_map = image_map.requires_grad_(self.loss.image_map)
        unfit = self.loss.reads_targets or not self.loss.image_map
        if unfit and not image_map.keeps_targets:
            raise ValueError(
                f"target_map changes the targets, but the loss {config.name!r} compares answers with the targets "
                "themselves; use a contrastive loss with image_map alone, info_nce for example"
            )

    def forward(self, target: Tensor, subject: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return mapped targets (n, d) and the loss's learned numbers."""
        return self.image_map(target, subject), self.loss()


class AlignmentModule(nn.Module):
    """Encoders, fusion and temperatures in one forward call; every combination of modalities is trained in every step.

    With separate encoders no term reaches into the branch of another (`branch_of`), so on a CPU an encoder goes the
    same way, bit for bit, as one trained alone from the same seed. Without ``target_dim``, targets have the width of
    the answers.
    """

    def __init__(
        self,
        fusion: Fusion,
        positions: Mapping[str, Tensor],
        config: AnyLossConfig,
        target_map: TargetMapConfig | None = None,
        target_dim: int = 0,
        n_subjects: int = 0,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.positions = dict(positions)
        names = tuple(fusion.modalities)
        self.combinations = [(name,) for name in names] + ([names] if len(names) > 1 else [])
        width, chosen = target_dim or fusion.embed_dim, target_map or TargetMapConfig()
        self.terms = nn.ModuleDict(
            {
                combination(some): AnswerTerm(config, TargetMap(chosen, width, n_subjects))
                for some in self.combinations
            }
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

    def term(self, key: str) -> AnswerTerm:
        """Give the term of a combination, as `combination` spells it."""
        found = self.terms[key]
        assert isinstance(found, AnswerTerm)
        return found

    def branch_of(self, name: str) -> str:
        """Say which branch a parameter belongs to: a modality's, or that of all together ("").

        A branch that is a modality's learns from this modality's term alone. One network over all channels is one
        branch with all its terms.
        """
        if not isinstance(self.fusion, SeparateEncoders):
            return ""
        for modality in self.fusion.modalities:
            if name.startswith((f"fusion.encoders.{modality}.", f"terms.{modality}.")):
                return modality
        return ""

    def branch_of_term(self, key: str) -> str:
        """Say which branch the answer of a combination trains."""
        return self.branch_of(f"terms.{key}.")

    def forward(
        self,
        data: Mapping[str, Tensor],
        subject: Tensor,
        target: Tensor,
        stimulus: Tensor,
        available: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """Return answers, mapped targets and the loss's learned numbers per combination, and extra loss terms."""
        answers = self.fusion.answers(data, self.positions, subject, available)
        compared, learned, extra = {}, {}, {}
        # with people of their own per modality a target belongs to no single person
        person = subject if subject.ndim == 1 else None
        for key in answers:
            compared[key], learned[key] = self.term(key)(target, person)
        if self.matching is not None:
            assert isinstance(self.fusion, CrossAttentionFusion)
            if available:
                raise ValueError("the matching loss needs every modality in every row; set matching_weight to 0")
            scale = learned[combination(self.fusion.modalities)]["logit_scale"].detach()
            loss = self.matching(self.fusion, data, self.positions, subject, stimulus, scale)
            extra["matching"] = self.matching_weight * loss
        penalty = penalties(self.fusion)
        if penalty is not None:
            extra["penalty"] = penalty
        return answers, compared, learned, extra
