"""Train brain encoders and their fusion against CLIP targets, on simulated recordings.

    accelerate launch -m alignment.train --config configs/demo.yaml --run-dir out/brain

One process or several; continues a killed run. The run folder receives ``config.yaml``, ``log.jsonl``, checkpoints,
``brain/`` (the exported `BrainModel`) and ``report.json``. Expected time and scores stand in the config file. The test
split is read once, for the report, after selection on validation pictures has ended.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from alignment.brain_model import BrainModel, build_fusion, encode_pairs, sensor_positions
from alignment.checkpoint import write_atomic
from alignment.fit import FitConfig, fit
from alignment.losses import AlignmentLossConfig, LogitScale, combined_loss
from alignment.matching_loss import Matching
from alignment.pairs import Pairs, batch_rows, read_targets
from alignment.projector import Projector, fit_projection
from alignment.report import RidgeTable, fit_ridges, summary, test_report
from alignment.retrieval import report_similarity
from alignment.runtime import Runtime
from alignment.study import DataConfig, Study
from alignment.target_space import TargetSpace
from encoders.build import PRESETS, EncoderConfig
from encoders.cross_attention import CrossAttentionFusion
from encoders.fusion import Fusion, FusionConfig
from encoders.late_fusion import LateFusionConfig
from encoders.layers.constraints import penalties
from encoders.modality import combination
from encoders.preprocess import Preprocessor, default_preprocess
from encoders.sensors import LayoutName, standard_layout
from encoders.simulate import SimulationConfig
from encoders.single_modality import SingleFusionConfig


class ModalityConfig(BaseModel):
    """One modality: sensors, changes to the default preprocessing, and the network (a preset's name or a config)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: LayoutName
    encoder: str | EncoderConfig
    preprocess: dict[str, Any] = {}

    def network(self) -> Any:
        if not isinstance(self.encoder, str):
            return self.encoder
        if self.encoder not in PRESETS:
            raise ValueError(f"encoder preset {self.encoder!r} is unknown, allowed are {sorted(PRESETS)}")
        return PRESETS[self.encoder]


class TrainConfig(BaseModel):
    """One training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: Path
    modalities: dict[str, ModalityConfig]
    simulation: SimulationConfig = SimulationConfig()
    data: DataConfig = DataConfig()
    fusion: FusionConfig = LateFusionConfig(modality_dropout=0.0)
    loss: AlignmentLossConfig = AlignmentLossConfig()
    fit: FitConfig
    batch_size: int = Field(default=256, gt=1)
    seed: int = 0
    threads: int = Field(default=0, ge=0, description="CPU threads of torch, 0: its default")


class AlignmentModule(nn.Module):
    """Encoders, fusion and temperature in one forward call; every combination of modalities is trained in every step.

    With separate encoders the fused term does not reach into them, so each stays as good as one trained alone.
    """

    def __init__(self, fusion: Fusion, positions: Mapping[str, Tensor], config: AlignmentLossConfig) -> None:
        super().__init__()
        self.fusion = fusion
        self.positions = dict(positions)
        self.scale = LogitScale(config.initial_temperature)
        self.image_map = nn.Linear(fusion.embed_dim, fusion.embed_dim, bias=False)
        nn.init.eye_(self.image_map.weight)
        self.image_map.requires_grad_(config.image_map)
        self.matching_weight, self.matching = config.matching_weight, None
        if config.matching_weight > 0:
            if not isinstance(fusion, CrossAttentionFusion):
                raise ValueError(
                    f"matching_weight {config.matching_weight} has no effect with {type(fusion).__name__}, expected 0; "
                    "set it to 0 or use the fusion cross_attention"
                )
            self.matching = Matching(fusion.embed_dim)

    def forward(
        self, data: Mapping[str, Tensor], subject: Tensor, target: Tensor, stimulus: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, dict[str, Tensor]]:
        answers = self.fusion.answers(data, self.positions, subject)
        logit_scale, extra = self.scale(), {}
        if self.matching is not None:
            assert isinstance(self.fusion, CrossAttentionFusion)
            loss = self.matching(self.fusion, data, self.positions, subject, stimulus, logit_scale.detach())
            extra["matching"] = self.matching_weight * loss
        penalty = penalties(self.fusion)
        if penalty is not None:
            extra["penalty"] = penalty
        return answers, self.image_map(target), logit_scale, extra


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
        torch.manual_seed(config.seed)
        n_subjects = {name: len(people) for name, people in self.study.subjects.items()}
        fusion = build_fusion(
            self.study.preprocessors, self.encoders, config.fusion, n_subjects, self.study.space.embed_dim
        )
        self.positions = sensor_positions(self.study.preprocessors, runtime)
        self.module = AlignmentModule(fusion, self.positions, config.loss)

    @property
    def combinations(self) -> list[tuple[str, ...]]:
        """Every modality alone and, if there are several, all together."""
        names = tuple(self.study.preprocessors)
        return [(name,) for name in names] + ([names] if len(names) > 1 else [])

    def batch_at(self, step: int, rank: int, world: int) -> dict[str, Any]:
        train = self.study.train
        rows = batch_rows(len(train), self.config.batch_size, step, rank, world, self.config.seed)
        picture = train.target[rows]
        return {
            "data": {name: torch.from_numpy(one[rows].astype(np.float32)) for name, one in train.data.items()},
            "subject": torch.from_numpy(train.subject[rows]),
            "stimulus": torch.from_numpy(picture),
            "target": self.study.targets[picture],
        }

    def loss(self, module: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        answers, compared, logit_scale, extra = module(
            batch["data"], batch["subject"], batch["target"], batch["stimulus"]
        )
        gather = self.runtime.gather_with_grad
        target, compared, stimulus = map(gather, (batch["target"], compared, batch["stimulus"]))
        weight = self.config.loss.contrastive_weight
        losses, logs = [], {"logit_scale": logit_scale.detach()}
        for name, embeds in answers.items():
            loss, parts = combined_loss(gather(embeds), target, logit_scale, weight, stimulus, compared=compared)
            losses.append(loss)
            logs |= {f"{name}_{part}": value for part, value in parts.items()}
        loss = torch.stack(losses).mean()
        for name, term in extra.items():
            loss, logs[name] = loss + term, term.detach()
        return loss, logs

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Score every combination on validation pictures; ``score`` is the mean top-1."""
        assert isinstance(module, AlignmentModule)
        study, space = self.study, self.mapped_space(module)
        scores = {}
        for names in self.combinations:
            embeds = self.encode(module.fusion, study.val, names)
            report = report_similarity(space.similarity(embeds, study.val_embeds), study.val.target, n_bootstrap=1)
            scores[f"{combination(names)}_top_1"] = report.top_1
            scores[f"{combination(names)}_two_way"] = report.two_way
        top_1 = [value for name, value in scores.items() if name.endswith("_top_1")]
        return {"score": float(np.mean(top_1)), **scores}

    def encode(self, fusion: nn.Module, pairs: Pairs, names: tuple[str, ...]) -> NDArray[np.float32]:
        data = {name: pairs.data[name] for name in names}
        return encode_pairs(fusion, data, self.positions, pairs.subject, self.runtime)

    def mapped_space(self, module: nn.Module) -> TargetSpace:
        """Give the target space as the trained map of the picture's side sees it."""
        assert isinstance(module, AlignmentModule)
        return self.study.space.with_basis(module.image_map.weight.detach().cpu().numpy().T)

    def export(self, weights: Mapping[str, Tensor]) -> BrainModel:
        """Assemble the model that serving loads, and fit its projection to raw image embeddings."""
        self.module.load_state_dict(dict(weights))
        fusion, study = self.module.fusion.eval(), self.study
        mean = study.space.mean
        fits = {}
        for names in self.combinations:
            answers, held_out = (self.encode(fusion, pairs, names) for pairs in (study.train, study.val))
            shown, expected = study.train_embeds[study.train.target], study.val_embeds[study.val.target]
            fits[combination(names)] = fit_projection(answers, shown, (held_out, expected), mean)
        projector = Projector({k: one[0] for k, one in fits.items()}, {k: one[1] for k, one in fits.items()}, mean)
        model = BrainModel(
            study.preprocessors, self.encoders, self.config.fusion, study.subjects, self.mapped_space(self.module),
            projector, self.runtime,
        )  # fmt: skip
        model.load_weights(fusion.state_dict())
        return model

    def ridges(self) -> RidgeTable:
        study = self.study
        return fit_ridges(study.train, study.val, study.train_embeds, study.val_embeds)


def record_study(config: TrainConfig, runtime: Runtime) -> Study:
    """Record what a run trains and is selected on."""
    preprocessors = {
        name: Preprocessor(default_preprocess(name, **one.preprocess), standard_layout(one.layout))
        for name, one in config.modalities.items()
    }
    return Study.record(config.targets, preprocessors, config.simulation, config.data, progress=runtime.is_main)


def train(config: TrainConfig, run_dir: Path, *, resume: bool = True) -> dict[str, Any]:
    """Run a training to its report.

    Returns
    -------
    dict
        The report, as written to ``report.json``; empty on processes other than the first.
    """
    runtime = Runtime(threads=config.threads, seed=config.seed)
    training = BrainTraining(config, runtime)
    run_dir.mkdir(parents=True, exist_ok=True)
    if runtime.is_main:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_atomic(run_dir / "config.yaml", text.encode())
    result = fit(
        training.module, training.loss, training.batch_at, config.fit, runtime, run_dir, training.validate,
        resume=resume,
    )  # fmt: skip
    if not runtime.is_main:
        runtime.close()  # a process that exits with its group open may abort
        return {}
    model = training.export(result.weights)
    model.save(run_dir / "brain")
    test_embeds = read_targets(config.targets)["test"].embeds
    report = {
        "data": "simulated recordings of procedural pictures; no real brain took part",
        "selection": {"split": "val", "score": result.best_score, "step": result.best_step, "steps": result.step},
        "skipped_steps": result.n_skipped,
        "training_seconds": result.seconds,
        "n_train_images": len(training.study.train_embeds),
        "train_repetitions": config.data.train_repetitions,
        "scores": test_report(
            model, training.study.simulator, training.ridges(), test_embeds, training.combinations,
            n_repetitions=config.data.test_repetitions,
        ),
    }  # fmt: skip
    write_atomic(run_dir / "report.json", json.dumps(report, indent=1).encode())
    runtime.close()
    return report


def choose(
    settings: Mapping[str, Any],
    *,
    encoder: str | None = None,
    modalities: Sequence[str] = (),
    steps: int | None = None,
    seed: int | None = None,
    targets: Path | None = None,
) -> TrainConfig:
    """Change what a command line may change in the settings of a config file.

    Parameters
    ----------
    settings : mapping
        As in the file.
    encoder : str, optional
        Preset of `encoders.build.PRESETS` for every modality.
    modalities : sequence of str
        Which of the file's modalities to use; empty for all.
    steps, seed, targets : optional
        Replace the file's values.

    Returns
    -------
    TrainConfig

    Raises
    ------
    ValueError
        If a modality is not in the file, or the preset is unknown.
    """
    known = settings["modalities"]
    missing = sorted(set(modalities) - set(known))
    if missing:
        raise ValueError(f"the config has the modalities {sorted(known)}, got {missing}; choose among them")
    chosen = {name: known[name] for name in (modalities or known)}
    if encoder is not None:
        chosen = {name: {**one, "encoder": encoder} for name, one in chosen.items()}
    changed: dict[str, Any] = {**settings, "modalities": chosen}
    if steps is not None:
        changed["fit"] = {**settings["fit"], "max_steps": steps}
    changed |= {key: value for key, value in (("seed", seed), ("targets", targets)) if value is not None}
    config = TrainConfig.model_validate(changed)
    for one in config.modalities.values():
        one.network()
    return config


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m alignment.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see configs/")
    parser.add_argument("--run-dir", type=Path, help="default: out/<name of the config>")
    parser.add_argument("--targets", type=Path, help="file of targets, instead of the config's")
    parser.add_argument("--encoder", help="preset for every modality, instead of the config's: see phosphene encoders")
    parser.add_argument("--modality", action="append", default=[], help="use only this one (may be repeated)")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of the config's")
    parser.add_argument("--seed", type=int, help="instead of the config's")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="continue a killed run")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    config = choose(
        yaml.safe_load(arguments.config.read_text()), encoder=arguments.encoder, modalities=arguments.modality,
        steps=arguments.steps, seed=arguments.seed, targets=arguments.targets,
    )  # fmt: skip
    report = train(config, arguments.run_dir or Path("out") / arguments.config.stem, resume=arguments.resume)
    if report:
        print(summary(report["scores"]))


if __name__ == "__main__":
    main()
