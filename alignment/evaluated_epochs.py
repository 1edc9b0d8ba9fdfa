"""Epochs of test and validation pictures straight from the stores, person by person, single presentations only."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from alignment.answer_figures import Gallery
from alignment.recorded_data import RecordedDataConfig, RecordedSplits, columns_of
from alignment.recorded_sources import RecordedSources
from encoders.epochs import SignalEpochs

TEST, VALIDATION = "test", "val"
Float = NDArray[np.float32]
Ints = NDArray[np.int64]


class EvaluatedEpochs:
    """Test epochs of everybody, and everybody's epochs of validation pictures.

    The latter include those of people who were held out: of pictures that selected the model, by people whom neither
    training nor selection has seen.

    Parameters
    ----------
    config : RecordedDataConfig
    sources : RecordedSources
    splits : RecordedSplits

    Raises
    ------
    ValueError
        If a store has no test epochs.
    """

    def __init__(self, config: RecordedDataConfig, sources: RecordedSources, splits: RecordedSplits) -> None:
        self.sources = sources
        self.rows: dict[tuple[str, str], Ints] = {}
        tables = columns_of(config, sources.stores)
        for name, one in splits.modalities.items():
            known = np.isin(tables[name].image, list(splits.images[VALIDATION])) & tables[name].of_split("train")
            self.rows[name, TEST] = one.rows[TEST]
            self.rows[name, VALIDATION] = np.flatnonzero(known)
            if len(one.rows[TEST]) == 0:
                raise ValueError(f"{name}: the store has no test epochs; evaluate data that has some")
        self.columns: dict[tuple[str, str], Mapping[str, NDArray[np.str_]]] = {
            (name, split): {
                one: np.array(sources.stores[name].metadata[one].take(rows).to_pylist())
                for one in ("subject", "image", "repetition")
            }
            for (name, split), rows in self.rows.items()
        }

    def people(self, name: str, split: str) -> list[str]:
        return sorted(set(self.columns[name, split]["subject"].tolist()))

    def images(self, name: str, split: str) -> set[str]:
        return set(self.columns[name, split]["image"].tolist())

    def gallery(self, names: tuple[str, ...], split: str) -> tuple[Gallery, Float]:
        """Return the pictures that people of all these modalities saw in a split, sorted, and their embeddings."""
        images = sorted(set.intersection(*(self.images(name, split) for name in names)))
        rows = self.sources.targets.index(images)
        concepts = tuple(self.sources.targets.concepts[row] for row in rows)
        return Gallery(tuple(images), concepts), self.sources.targets.embeds[rows]

    def shown(self, name: str, person: str, split: str) -> tuple[list[str], list[int]]:
        """List a person's pictures, sorted, and how often each was shown."""
        columns = self.columns[name, split]
        images, counts = np.unique(columns["image"][columns["subject"] == person], return_counts=True)
        return images.tolist(), counts.tolist()

    def epochs(self, name: str, person: str, split: str) -> SignalEpochs:
        """Read a person's epochs of a split, picture by picture in sorted order, repetitions in theirs.

        Raises
        ------
        ValueError
            If they are averages already.
        """
        columns = self.columns[name, split]
        mine = np.flatnonzero(columns["subject"] == person)
        order = np.lexsort((columns["repetition"][mine], columns["image"][mine]))
        epochs = self.sources.stores[name].epochs(self.rows[name, split][mine[order]])
        if max(epochs.n_averaged) > 1:
            raise ValueError(f"{name}: {split} epochs of {person} are averages already; convert single presentations")
        return epochs
