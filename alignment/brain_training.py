"""Network, loss and selection of one training run on one study, and the export of its result."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alignment.alignment_module import AlignmentModule
from alignment.batches import GroupedBatches
from alignment.brain_model import BrainModel, build_fusion, encode_pairs, sensor_positions
from alignment.joined_pairs import JoinedPairs
from alignment.loss_choice import EmbedPairs
from alignment.pairs import PairBatch, Pairs
from alignment.projector import Projector, fit_projection
from alignment.recorded_data import RecordedDataConfig
from alignment.recorded_sources import open_sources
from alignment.report import RidgeTable, fit_ridges
from alignment.retrieval import report_similarity
from alignment.runtime import Runtime
from alignment.study import Study
from alignment.target_space import TargetSpace
from alignment.train_config import ModalityConfig, TrainConfig
from encoders.augment import augment
from encoders.availability import availability
from encoders.modality import combination
from encoders.preprocess import Preprocessor, default_preprocess
from encoders.sensors import SensorLayout, standard_layout
from encoders.single_modality import SingleFusionConfig

MAX_PROJECTION_ROWS = 50_000
"""Training epochs that the projection to image embeddings is fitted on, at most."""


class BrainTraining:
    """Network, loss and selection of one run on one study; the study is recorded here if it is not given."""

    def __init__(self, config: TrainConfig, runtime: Runtime, study: Study | None = None) -> None:
        if not isinstance(config.fusion, SingleFusionConfig) and config.fusion.modality_dropout > 0:
            raise ValueError(
                f"modality_dropout {config.fusion.modality_dropout} has no effect here: every step trains every "
                "combination of modalities; set it to 0"
            )
        self.config, self.runtime = config, runtime
        self.encoders = {name: one.network() for name, one in config.modalities.items()}
        self.study = study or record_study(config, runtime)
        self.groups = self._groups()
        torch.manual_seed(config.seed)
        n_subjects = {name: len(people) for name, people in self.study.subjects.items()}
        width = config.target_map.width(self.study.space.target_dim)
        fusion = build_fusion(self.study.preprocessors, self.encoders, config.fusion, n_subjects, width)
        self.positions = sensor_positions(self.study.preprocessors, runtime)
        n_people = max(n_subjects.values()) if len(set(map(tuple, self.study.subjects.values()))) == 1 else 0
        target_dim = self.study.space.target_dim
        self.module = AlignmentModule(fusion, self.positions, config.loss, config.target_map, target_dim, n_people)

    def _groups(self) -> GroupedBatches | None:
        """Group epochs by picture, if the config says so."""
        if not self.config.group_size:
            return None
        names = tuple(self.study.preprocessors)
        rows = self.study.train.view(names)
        if isinstance(self.study.train, JoinedPairs) and len(names) > 1:
            raise ValueError(f"group_size needs one modality of recorded data, got {list(names)}; set it to 0")
        return GroupedBatches(
            rows.target, rows.subject, self.config.batch_size, self.config.group_size, self.config.seed
        )

    @property
    def combinations(self) -> list[tuple[str, ...]]:
        """Every modality alone and, if there are several, all together."""
        return self.module.combinations

    def batch_at(self, step: int, rank: int, world: int) -> dict[str, Any]:
        train, config = self.study.train, self.config
        if self.groups is None:
            batch = train.batch(config.batch_size, step, rank, world, config.seed)
        else:
            batch = train.take(self.groups.rows(step, rank, world))
        data = {name: torch.from_numpy(one) for name, one in batch.data.items()}
        return {
            "data": self.augmented(data, batch, step, rank) if config.augment.steps else data,
            "subject": torch.from_numpy(batch.subject),
            "stimulus": torch.from_numpy(batch.target),
            "target": self.study.targets[batch.target],
            "available": {name: torch.from_numpy(rows) for name, rows in batch.available.items()},
        }

    def augmented(self, data: Mapping[str, Tensor], batch: PairBatch, step: int, rank: int) -> dict[str, Tensor]:
        """Augment each modality; random numbers depend on seed, step, rank and modality alone."""
        changed = {}
        for place, (name, one) in enumerate(data.items()):
            seed = np.random.SeedSequence([self.config.seed, step, rank, place]).generate_state(1)[0]
            subject = batch.subject if batch.subject.ndim == 1 else batch.subject[:, place]
            changed[name] = augment(
                one, self.config.augment, torch.Generator().manual_seed(int(seed)),
                sfreq=self.study.preprocessors[name].config.sfreq, subject=torch.from_numpy(subject),
                target=torch.from_numpy(batch.target),
            )  # fmt: skip
            if name in batch.available:  # rows without this modality stay empty
                changed[name][torch.from_numpy(~batch.available[name])] = 0
        return changed

    def loss(self, module: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses of the branches; one branch that gives several answers takes the mean of their losses."""
        answers, compared, learned, extra = module(
            batch["data"], batch["subject"], batch["target"], batch["stimulus"], batch["available"]
        )
        inner = self.runtime.unwrap(module)
        assert isinstance(inner, AlignmentModule)
        gather = self.runtime.gather_with_grad
        masks = availability(inner.fusion.modalities, batch["data"], batch["available"], batch["subject"])
        branches: dict[str, list[Tensor]] = {}
        logs: dict[str, Tensor] = {}
        for names in inner.combinations:
            name, rows = combination(names), torch.stack([masks[one] for one in names]).all(dim=0)
            if len(answers[name]) == 0:  # the same for all processes
                continue
            shown = (batch["target"], compared[name], batch["stimulus"])
            target, mapped, stimulus = map(gather, shown if bool(rows.all()) else (one[rows] for one in shown))
            pairs = EmbedPairs(gather(answers[name]), target, stimulus, mapped)
            loss, parts = inner.term(name).loss.compute(pairs, learned[name])
            branches.setdefault(inner.branch_of_term(name), []).append(loss)
            numbers = {**{part: value.detach() for part, value in learned[name].items()}, **parts}
            logs |= {f"{name}_{part}": value for part, value in numbers.items()}
            inner.term(name).loss.remember(EmbedPairs(target, target, stimulus, mapped))
        loss = torch.stack([torch.stack(terms).mean() for terms in branches.values()]).sum()
        for name, term in extra.items():
            loss, logs[name] = loss + term, term.detach()
        return loss, logs

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Score every combination on validation pictures; ``score`` is the mean top-1."""
        assert isinstance(module, AlignmentModule)
        study = self.study
        scores = {}
        for names in self.combinations:
            shown, space = study.val.view(names), self.mapped_space(module, names)
            embeds = self.encode(module.fusion, shown, names)
            report = report_similarity(space.similarity(embeds, study.val_embeds), shown.target, n_bootstrap=1)
            scores[f"{combination(names)}_top_1"] = report.top_1
            scores[f"{combination(names)}_two_way"] = report.two_way
        top_1 = [value for name, value in scores.items() if name.endswith("_top_1")]
        return {"score": float(np.mean(top_1)), **scores}

    def encode(self, fusion: nn.Module, pairs: Pairs, names: tuple[str, ...]) -> NDArray[np.float32]:
        data = {name: pairs.data[name] for name in names}
        return encode_pairs(fusion, data, self.positions, pairs.subject, self.runtime)

    def mapped_space(self, module: nn.Module, names: Sequence[str]) -> TargetSpace:
        """Give the target space as the trained map of the picture's side sees it, for answers from ``names``."""
        assert isinstance(module, AlignmentModule)
        return self.study.space.with_basis(module.term(combination(names)).image_map.basis().cpu().numpy())

    def export(self, weights: Mapping[str, Tensor]) -> BrainModel:
        """Assemble the model that serving loads, and fit its projection to raw image embeddings."""
        self.module.load_state_dict(dict(weights))
        fusion, study = self.module.fusion.eval(), self.study
        mean = study.space.mean
        fits = {}
        for names in self.combinations:
            train, val = study.train.view(names), study.val.view(names)
            if len(train) > MAX_PROJECTION_ROWS:
                rows = np.random.default_rng(0).permutation(len(train))[:MAX_PROJECTION_ROWS]
                train = train.select(np.sort(rows))
            answers, held_out = (self.encode(fusion, pairs, names) for pairs in (train, val))
            shown, expected = study.train_embeds[train.target], study.val_embeds[val.target]
            fits[combination(names)] = fit_projection(answers, shown, (held_out, expected), mean)
        projector = Projector({k: one[0] for k, one in fits.items()}, {k: one[1] for k, one in fits.items()}, mean)
        spaces = {combination(names): self.mapped_space(self.module, names) for names in self.combinations}
        model = BrainModel(
            study.preprocessors, self.encoders, self.config.fusion, study.subjects,
            spaces if len(spaces) > 1 else next(iter(spaces.values())), projector, self.runtime,
        )  # fmt: skip
        model.load_weights(fusion.state_dict())
        return model

    def ridges(self) -> RidgeTable:
        study = self.study
        assert isinstance(study.train, Pairs) and isinstance(study.val, Pairs)
        return fit_ridges(study.train, study.val, study.train_embeds, study.val_embeds)


def record_study(config: TrainConfig, runtime: Runtime) -> Study:
    """Record, or open, what a run trains and is selected on."""
    if isinstance(config.data, RecordedDataConfig):
        sources = open_sources(config)
        return Study.prepared(
            config.data.folder, sources.digest, sources.targets, n_members=config.target_map.n_members
        )
    preprocessors = {
        name: Preprocessor(default_preprocess(name, **one.preprocess), _simulated_layout(one))
        for name, one in config.modalities.items()
    }
    return Study.record(
        config.targets, preprocessors, config.simulation, config.data, n_members=config.target_map.n_members,
        progress=runtime.is_main,
    )  # fmt: skip


def _simulated_layout(config: ModalityConfig) -> SensorLayout:
    assert config.layout != "recorded"
    return standard_layout(config.layout)
