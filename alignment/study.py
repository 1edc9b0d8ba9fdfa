"""A study: people, recordings of training and validation pictures, and the targets that go with them.

Everything that does not depend on a network, so that many networks can be trained on the same recordings, which are
either simulated here or prepared on disk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from alignment.joined_pairs import JoinedPairs
from alignment.pairs import Pairs, TargetSplit, read_targets, record_pairs
from alignment.prepared_epochs import open_prepared
from alignment.target_space import TargetSpace
from alignment.target_table import TargetTable
from encoders.preprocess import Preprocessor
from encoders.simulate import BrainSimulator, SimulationConfig

TRAIN_NOISE, VAL_NOISE = 1, 2


class DataConfig(BaseModel):
    """How many pictures are shown how often to simulated people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["simulated"] = "simulated"
    n_train_images: int = Field(default=4000, gt=1)
    train_repetitions: int = Field(default=1, gt=0, description="presentations per training picture and person")
    n_val_images: int = Field(default=200, gt=1, description="gallery of the selection")
    test_repetitions: int = Field(default=4, gt=0, description="averaged ones, for validation and test")


@dataclass(frozen=True)
class Study:
    """Recordings of training and validation pictures.

    Attributes
    ----------
    simulator : BrainSimulator or None
        Who recorded; None for recordings of real people.
    preprocessors : mapping of str to Preprocessor
        Fitted on training epochs, one per modality.
    subjects : mapping of str to sequence of str
        Names of the people of each modality, in the order of their indices.
    space : TargetSpace
        Fitted on the training targets.
    train_embeds, val_embeds : ndarray, (n, d), float32
        Raw embeddings of the pictures that the targets of ``train`` and ``val`` count.
    train : Pairs or JoinedPairs
        Simulated: single presentations.
    val : Pairs or JoinedPairs
        Averaged presentations.
    targets : Tensor, (n, d), float32
        Standardised ``train_embeds``.
    """

    simulator: BrainSimulator | None
    preprocessors: Mapping[str, Preprocessor]
    subjects: Mapping[str, Sequence[str]]
    space: TargetSpace
    train_embeds: NDArray[np.float32]
    val_embeds: NDArray[np.float32]
    train: Pairs | JoinedPairs
    val: Pairs | JoinedPairs
    targets: Tensor

    @classmethod
    def record(
        cls,
        targets: Path,
        preprocessors: Mapping[str, Preprocessor],
        simulation: SimulationConfig,
        data: DataConfig,
        *,
        n_members: int = 1,
        progress: bool = False,
    ) -> "Study":
        """Show pictures of the training and validation splits to every person; the test split is not touched."""
        splits = read_targets(targets)
        space = TargetSpace.fit(splits["train"].embeds, n_members)
        train_embeds = _spread_over_concepts(splits["train"], data.n_train_images)
        val_embeds = _spread_over_concepts(splits["val"], data.n_val_images)
        simulator = BrainSimulator(simulation, space.target_dim, splits["train"].embeds, splits["train"].concepts)

        def pairs(embeds: NDArray[np.float32], n_repetitions: int, average: bool, seed: int) -> Pairs:
            return record_pairs(
                simulator, preprocessors, embeds, simulation.n_subjects, n_repetitions=n_repetitions, average=average,
                seed=seed, progress=progress,
            )  # fmt: skip

        people = [f"sim-{index + 1:02d}" for index in range(simulation.n_subjects)]
        return cls(
            simulator=simulator,
            preprocessors=preprocessors,
            subjects=dict.fromkeys(preprocessors, people),
            space=space,
            train_embeds=train_embeds,
            val_embeds=val_embeds,
            train=pairs(train_embeds, data.train_repetitions, False, TRAIN_NOISE),
            val=pairs(val_embeds, data.test_repetitions, True, VAL_NOISE),
            targets=torch.from_numpy(space.standardise(train_embeds)),
        )

    def view(self, names: Sequence[str]) -> "Study":
        """Return the same recordings with some of the modalities."""
        if set(names) == set(self.preprocessors):
            return self
        return replace(
            self,
            preprocessors={name: self.preprocessors[name] for name in names},
            subjects={name: self.subjects[name] for name in names},
            train=self.train.view(names),
            val=self.val.view(names),
        )

    @classmethod
    def prepared(cls, folder: Path, digest: str, targets: TargetTable, *, n_members: int = 1) -> "Study":
        """Open prepared recordings; see `alignment.prepared_epochs`, which holds no test epochs."""
        found = open_prepared(folder, digest)
        train_embeds, val_embeds = (targets.embeds[targets.index(found.images[split])] for split in ("train", "val"))
        space = TargetSpace.fit(train_embeds, n_members)
        return cls(
            simulator=None,
            preprocessors=found.preprocessors,
            subjects=found.people,
            space=space,
            train_embeds=train_embeds,
            val_embeds=val_embeds,
            train=found.train,
            val=found.val,
            targets=torch.from_numpy(space.standardise(train_embeds)),
        )


def _spread_over_concepts(split: TargetSplit, n: int) -> NDArray[np.float32]:
    """Take up to ``n`` pictures, the same number of every concept as far as possible."""
    seen: dict[int, int] = {}
    turn = np.empty(len(split.concepts), np.int64)
    for row, concept in enumerate(split.concepts.tolist()):
        turn[row] = seen.setdefault(concept, 0)
        seen[concept] += 1
    chosen = np.sort(np.lexsort((np.arange(len(turn)), turn))[:n])
    return split.embeds[chosen]
