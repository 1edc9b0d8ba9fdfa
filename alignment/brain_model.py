"""`BrainModel`: everything from recordings to image embeddings, as one pair of files that serving loads.

Two vectors leave it. ``brain_embeds`` is what the contrastive training made comparable with pictures, and is compared
with `BrainModel.similarity`. ``image_embeds`` is the linear projection of it onto raw CLIP vectors, with the spread
of the training targets restored, and is what a generator expects.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.pairs import Signals
from alignment.projector import Projector
from alignment.recordings import by_modality, joined
from alignment.runtime import Runtime
from alignment.target_space import Spaces, TargetSpace, any_space, read_spaces, space_for, spaces_arrays
from encoders.build import EncoderConfig, SignalShape
from encoders.epochs import EpochsMismatch, SignalEpochs
from encoders.fusion import AnyFusionConfig, Fusion, FusionConfig
from encoders.fusion import build_fusion as build_untrained
from encoders.modality import combination
from encoders.preprocess import PreprocessConfig, PreprocessedEpochs, Preprocessor
from encoders.signal_faults import SignalFlag, inspect_signal

WEIGHTS, META = "brain.safetensors", "brain.json"
ONE_SPACE, SCHEMA_VERSION = 1, 2
"""Versions of the files: a model with one space for all answers is still written as its first readers knew it."""
BATCH = 256
Float = NDArray[np.float32]

_ENCODER: TypeAdapter[Any] = TypeAdapter(EncoderConfig)
_FUSION: TypeAdapter[Any] = TypeAdapter(FusionConfig)
# Around the window: what lies further away is not decoded, and may be very long.
_INSPECTED_S = 1.0


@dataclass(frozen=True)
class InputReport:
    """What was used of the recordings and what was changed.

    ``subject`` is the person whose layers were used, empty for an unknown one.
    """

    modalities: tuple[str, ...]
    subject: str
    interpolated: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    flags: tuple[SignalFlag, ...] = ()


@dataclass(frozen=True)
class BrainEmbedding:
    """Answers for n epochs: ``image_embeds`` raw CLIP vectors (n, d) and ``brain_embeds`` (n, e), float32."""

    image_embeds: Float
    brain_embeds: Float
    stimulus: tuple[str, ...]
    n_averaged: tuple[int, ...]
    report: InputReport


class BrainModel:
    """Preprocessors, encoders, fusion and projection of one training run.

    Parameters
    ----------
    preprocessors : mapping of str to Preprocessor
        Fitted, one per modality.
    encoders : mapping of str to encoder config
        For the same modalities.
    fusion_config : FusionConfig
    subjects : sequence of str, or mapping of str to sequence of str
        People of the training data, in the order of their indices; per modality where they differ.
    spaces : TargetSpace or mapping of str to TargetSpace
        Where answers are compared with pictures: one space for all, or one per combination of modalities.
    projector : Projector
    runtime : Runtime
    """

    def __init__(
        self,
        preprocessors: Mapping[str, Preprocessor],
        encoders: Mapping[str, Any],
        fusion_config: AnyFusionConfig,
        subjects: Sequence[str] | Mapping[str, Sequence[str]],
        spaces: Spaces,
        projector: Projector,
        runtime: Runtime,
    ) -> None:
        self.preprocessors = dict(preprocessors)
        self.encoders = dict(encoders)
        self.fusion_config = fusion_config
        people = subjects if isinstance(subjects, Mapping) else dict.fromkeys(preprocessors, subjects)
        self.people = {name: tuple(people[name]) for name in preprocessors}
        self.spaces = spaces
        self.projector = projector
        self.runtime = runtime
        counts = {name: len(names) for name, names in self.people.items()}
        fusion = build_fusion(self.preprocessors, self.encoders, fusion_config, counts, any_space(spaces).embed_dim)
        self.fusion = fusion.eval().requires_grad_(False).to(runtime.device)
        self.positions = sensor_positions(self.preprocessors, runtime)

    @property
    def embed_dim(self) -> int:
        """Width of ``image_embeds``; that of ``brain_embeds`` may be smaller."""
        return any_space(self.spaces).target_dim

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.preprocessors)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Everybody in the training data, whatever the modality."""
        return tuple(dict.fromkeys(name for names in self.people.values() for name in names))

    @property
    def preprocess_configs(self) -> dict[str, PreprocessConfig]:
        return {name: preprocessor.config for name, preprocessor in self.preprocessors.items()}

    @property
    def preprocess_digests(self) -> dict[str, str]:
        """Preprocessing hash of each modality."""
        return {name: preprocessor.digest for name, preprocessor in self.preprocessors.items()}

    def space_of(self, modalities: Sequence[str]) -> TargetSpace:
        """Give the space in which answers from these modalities are compared with pictures.

        Raises
        ------
        ValueError
            If the model was not trained to answer from them.
        """
        return space_for(self.spaces, combination(modalities))

    def similarity(self, brain_embeds: Float, image_embeds: Float, modalities: Sequence[str]) -> Float:
        """Compare ``brain_embeds`` (n, e) with raw image embeddings (m, d) of a gallery: cosines (n, m), float32.

        ``modalities`` are those that the answers come from (`InputReport.modalities`).
        """
        return self.space_of(modalities).similarity(brain_embeds, image_embeds)

    def embed(
        self, recordings: Sequence[SignalEpochs], *, subject: str | None = None, average: bool = False
    ) -> BrainEmbedding:
        """Turn recordings of the same stimuli into embeddings.

        Parameters
        ----------
        recordings : sequence of SignalEpochs
            One that holds any of the model's modalities, or one per modality.
        subject : str, optional
            Whose brain; taken from the recordings if not given. A person outside the training data gets the mean
            person's layers.
        average : bool
            Average the epochs of each stimulus first.

        Returns
        -------
        BrainEmbedding
            Rows in the order of the first recording.

        Raises
        ------
        EpochsMismatch
            If the recordings hold no known modality, the same one twice, different stimuli or different people.
        """
        parts, warnings = by_modality(recordings, self.modalities)
        if average:
            parts = {name: part.average_repetitions() for name, part in parts.items()}
        parts, notes = joined(parts)
        person, index, more = self._person(subject, parts)
        ready = {name: self.preprocessors[name](part) for name, part in parts.items()}
        flags = [flag for name, part in parts.items() for flag in self._inspect(name, part)]
        brain_embeds = self.encode({name: one.data for name, one in ready.items()}, index)
        first = next(iter(parts.values()))
        return BrainEmbedding(
            image_embeds=self.projector(brain_embeds, combination(list(parts))),
            brain_embeds=brain_embeds,
            stimulus=first.stimulus,
            n_averaged=first.n_averaged,
            report=_report(person, ready, [*warnings, *notes, *more], flags),
        )

    def person_index(self, subject: str) -> NDArray[np.int64]:
        """Give the index of a person in every modality, (1, m); that of an unknown person where there is none."""
        found = [names.index(subject) if subject in names else len(names) for names in self.people.values()]
        return np.array([found], dtype=np.int64)

    def encode(self, data: Mapping[str, Signals], subject: int | NDArray[np.int64]) -> Float:
        """Run the encoders on preprocessed epochs.

        Parameters
        ----------
        data : mapping of str to ndarray, (n, n_channels, n_times)
            Per modality, all with the same n.
        subject : int or ndarray, (n,), (n, m) or (1, m), int64
            Index of the person, as `person_index` gives it; m columns for the modalities of the model, where people or
            their indices differ.

        Returns
        -------
        ndarray, (n, d), float32
            ``brain_embeds``.
        """
        return encode_pairs(self.fusion, data, self.positions, subject, self.runtime)

    def save(self, folder: Path) -> None:
        """Write ``brain.safetensors`` and ``brain.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"fusion.{name}": value.cpu().contiguous() for name, value in self.fusion.state_dict().items()}
        metas = {}
        for name, preprocessor in self.preprocessors.items():
            metas[name], arrays = preprocessor.state()
            tensors |= {f"preprocess.{name}.{key}": torch.from_numpy(array) for key, array in arrays.items()}
        tensors |= {f"space.{key}": torch.from_numpy(array) for key, array in spaces_arrays(self.spaces).items()}
        tensors |= {f"projector.{key}": torch.from_numpy(array) for key, array in self.projector.arrays().items()}
        save_file({name: value.clone() for name, value in tensors.items()}, folder / WEIGHTS)
        meta = {
            "schema_version": ONE_SPACE if isinstance(self.spaces, TargetSpace) else SCHEMA_VERSION,
            "embed_dim": self.embed_dim,
            "subjects": self.people,
            "encoders": {name: config.model_dump(mode="json") for name, config in self.encoders.items()},
            "fusion": self.fusion_config.model_dump(mode="json"),
            "preprocess": metas,
        }
        (folder / META).write_text(json.dumps(meta, indent=1))

    @classmethod
    def load(cls, folder: Path, runtime: Runtime | None = None) -> "BrainModel":
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the files are of another schema version.
        """
        meta = json.loads((folder / META).read_text())
        if meta["schema_version"] not in (ONE_SPACE, SCHEMA_VERSION):
            raise ValueError(
                f"{META} has schema version {meta['schema_version']}, expected {ONE_SPACE} or {SCHEMA_VERSION}; export "
                "the model again"
            )
        tensors = load_file(folder / WEIGHTS)
        preprocessors = {
            name: Preprocessor.from_state(state, _arrays(tensors, f"preprocess.{name}."))
            for name, state in meta["preprocess"].items()
        }
        model = cls(
            preprocessors,
            {name: _ENCODER.validate_python(config) for name, config in meta["encoders"].items()},
            _FUSION.validate_python(meta["fusion"]),
            meta["subjects"],
            read_spaces(_arrays(tensors, "space.")),
            Projector.from_arrays(_arrays(tensors, "projector.")),
            runtime or Runtime(),
        )
        model.load_weights(
            {name.removeprefix("fusion."): value for name, value in tensors.items() if name.startswith("fusion.")}
        )
        return model

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set the weights of encoders and fusion."""
        self.fusion.load_state_dict(dict(weights))

    def _inspect(self, name: str, epochs: SignalEpochs) -> tuple[SignalFlag, ...]:
        preprocessor = self.preprocessors[name]
        config = preprocessor.config
        near = epochs.crop(config.tmin - _INSPECTED_S, config.tmax + _INSPECTED_S)
        flags = inspect_signal(near, preprocessor.layout, min_fraction=config.min_fraction)
        return tuple(replace(flag, detail=f"{name}: {flag.detail}") for flag in flags)

    def _person(
        self, subject: str | None, parts: Mapping[str, SignalEpochs]
    ) -> tuple[str, NDArray[np.int64], list[str]]:
        """Find whose layers to use: (name or "", indices, warnings)."""
        named = sorted({part.subject for part in parts.values() if part.subject})
        if subject is None and len(named) > 1:
            raise EpochsMismatch(f"the recordings are of different people {named}; fuse recordings of one person")
        wanted = subject or (named[0] if named else "")
        index = self.person_index(wanted)
        strangers = [name for name in parts if wanted not in self.people[name]]
        if not strangers:
            return wanted, index, []
        who = f"person {wanted!r} is" if subject else "the person is"
        where = "" if len(strangers) == len(parts) else f" of {', '.join(strangers)}"
        n = len({person for name in strangers for person in self.people[name]})
        note = f"{who} not among the model's {n} people{where}: decoded with the mean person's layers"
        return wanted if where else "", index, [note]


def build_fusion(
    preprocessors: Mapping[str, Preprocessor],
    encoders: Mapping[str, Any],
    fusion_config: AnyFusionConfig,
    n_subjects: Mapping[str, int],
    embed_dim: int,
) -> Fusion:
    """Build untrained encoders and their fusion for the given preprocessing and numbers of people per modality."""
    shapes = {}
    for name, preprocessor in preprocessors.items():
        config = preprocessor.config
        places = tuple((float(x), float(y)) for x, y in preprocessor.positions_2d)
        n_people = n_subjects[name]
        shapes[name] = SignalShape(preprocessor.layout.n_channels, config.n_times, config.sfreq, n_people, places)
    return build_untrained(fusion_config, encoders, shapes, embed_dim)


def sensor_positions(preprocessors: Mapping[str, Preprocessor], runtime: Runtime) -> dict[str, Tensor]:
    """Give the flat sensor map (n_channels, 2) of each modality as the networks take it."""
    return {
        name: runtime.to_device(torch.from_numpy(np.array(preprocessor.positions_2d, dtype=np.float32)))
        for name, preprocessor in preprocessors.items()
    }


@torch.no_grad()
def encode_pairs(
    fusion: torch.nn.Module,
    data: Mapping[str, Signals],
    positions: Mapping[str, Tensor],
    subject: int | NDArray[np.int64],
    runtime: Runtime,
) -> Float:
    """Run a fusion module batch by batch over preprocessed epochs; see `BrainModel.encode`."""
    n = len(next(iter(data.values())))
    given = np.asarray(subject, dtype=np.int64)
    same = given.ndim < 2 or bool((given == given[:, :1]).all())  # one column says it all, and suits every fusion
    given = given[:, 0] if same and given.ndim == 2 else given
    people = torch.from_numpy(np.broadcast_to(given, (n,) if same else (n, given.shape[1])).copy())
    places = {name: positions[name] for name in data}
    parts = []
    for first in range(0, n, BATCH):
        rows = slice(first, first + BATCH)
        batch = {name: torch.from_numpy(np.asarray(one[rows], dtype=np.float32)) for name, one in data.items()}
        with runtime.autocast():
            embeds = fusion(runtime.to_device(batch), places, runtime.to_device(people[rows]))
        parts.append(embeds.float().cpu().numpy())
    return np.concatenate(parts)


def _report(
    person: str, ready: Mapping[str, PreprocessedEpochs], notes: Sequence[str], flags: Sequence[SignalFlag]
) -> InputReport:
    reports = [one.report for one in ready.values()]
    return InputReport(
        modalities=tuple(ready),
        subject=person,
        interpolated=tuple(name for report in reports for name in report.interpolated),
        dropped=tuple(name for report in reports for name in report.dropped),
        warnings=(*notes, *(warning for report in reports for warning in report.warnings)),
        flags=tuple(flags),
    )


def _arrays(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value.numpy() for name, value in tensors.items() if name.startswith(prefix)}
