"""Calibrate a model to a person it was not trained on, from a first session with or without labels.

    python -m alignment.person_calibration --model out/loso/brain --store eeg2.store --targets targets.safetensors \
        --subject sub-08 --out out/loso/people [--labelled] [--epochs 200] [--compare]

Writes `PersonMap` files (see `alignment.person_map`). Without ``--labelled`` what was shown is not read. The epochs are
those of the store's training pictures; ``--compare`` reads the test epochs as well and writes inductive, label-free and
few-shot figures side by side, never as one.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.brain_model import BrainEmbedding, BrainModel
from alignment.calibration_comparison import (
    CalibratedFigure,
    LabelledEpochs,
    compare_calibrations,
    comparison_json,
    comparison_text,
)
from alignment.few_shot import FewShotConfig
from alignment.person_map import LabelFreeConfig, PersonMap, fit_label_free, fit_labelled, save_person
from alignment.target_table import TargetTable, read_target_table
from encoders.durable_files import write_atomic
from encoders.epochs import SignalEpochs
from encoders.modality import combination
from encoders.part_bounds import own_files
from encoders.readers import read_epochs
from encoders.store import EpochStore

Float = NDArray[np.float32]


def person_epochs(store: EpochStore, subject: str, split: str, n_epochs: int = 0) -> SignalEpochs:
    """Read the first epochs of a person in a split, in the order of the store.

    Parameters
    ----------
    store : EpochStore
    subject, split : str
    n_epochs : int
        0: all.

    Raises
    ------
    ValueError
        If there are none, or fewer than asked for.
    """
    columns = {name: np.array(store.metadata[name].to_pylist()) for name in ("subject", "split", "image")}
    mask = (columns["subject"] == subject) & (columns["split"] == split) & (columns["image"] != "")
    rows = np.flatnonzero(mask)
    if len(rows) == 0 or n_epochs > len(rows):
        raise ValueError(
            f"{subject!r} has {len(rows)} epochs with a picture in split {split!r}, expected at least "
            f"{max(n_epochs, 1)}; the store has people {sorted(set(columns['subject'].tolist()))[:20]} and splits "
            f"{sorted(set(columns['split'].tolist()))}"
        )
    return store.epochs(rows[: n_epochs or len(rows)])


def calibrate_label_free(
    model: BrainModel, epochs: SignalEpochs, config: LabelFreeConfig | None = None, **facts: Any
) -> PersonMap:
    """Calibrate on epochs whose pictures are not asked for; ``facts`` are stored with it."""
    answer = model.embed([_anonymous(epochs)])
    key = combination(answer.report.modalities)
    return fit_label_free(answer.brain_embeds, key, config or LabelFreeConfig(), **facts)


def calibrate_labelled(
    model: BrainModel, epochs: SignalEpochs, table: TargetTable, config: FewShotConfig | None = None, **facts: Any
) -> PersonMap:
    """Calibrate on epochs whose stimulus ids are pictures of ``table``; ``facts`` are stored with it."""
    answer = model.embed([epochs])
    labelled = labelled_epochs(model, answer, table)
    told = {"images": sorted(set(labelled.images)), **facts}
    return fit_labelled(
        labelled.brain_embeds, labelled.shown, labelled.concepts, combination(answer.report.modalities),
        config or FewShotConfig(), **told,
    )  # fmt: skip


def labelled_epochs(model: BrainModel, answer: BrainEmbedding, table: TargetTable) -> LabelledEpochs:
    """Join a model's answers with what was shown."""
    if not all(answer.stimulus):
        raise ValueError("the recording has epochs without a stimulus id; calibrate label-free, or name what was shown")
    rows = table.index(answer.stimulus)
    shown = gallery_vectors(model, table.embeds[rows], answer.report.modalities)
    return LabelledEpochs(answer.brain_embeds, shown, answer.stimulus, tuple(table.concepts[row] for row in rows))


def gallery_vectors(model: BrainModel, image_embeds: Float, modalities: Sequence[str]) -> Float:
    """Give raw image embeddings (m, d) the coordinates in which answers from ``modalities`` are compared with them."""
    space = model.space_of(modalities)
    return np.asarray(space.standardise(image_embeds) @ space.basis, dtype=np.float32)


def calibrated_similarity(
    model: BrainModel, person: PersonMap, answer: BrainEmbedding, image_embeds: Float
) -> Float:  # fmt: skip
    """Compare a calibrated person's answers with a gallery of raw image embeddings (m, d); see `PersonMap.similarity`.

    Raises
    ------
    ValueError
        If the answers come from other modalities than the calibration.
    """
    key = combination(answer.report.modalities)
    if key != person.modalities:
        raise ValueError(
            f"the calibration is for {person.modalities!r}, the recording holds {key!r}; calibrate the person for it"
        )
    return person.similarity(answer.brain_embeds, gallery_vectors(model, image_embeds, answer.report.modalities))


def compare_person(
    model: BrainModel, store: EpochStore, table: TargetTable, subject: str, *, n_epochs: int = 0, average: bool = True,
    label_free: LabelFreeConfig | None = None, few_shot: FewShotConfig | None = None,
) -> list[CalibratedFigure]:  # fmt: skip
    """Score a person's test epochs without calibration and with each kind, fitted on the training pictures' epochs.

    Parameters
    ----------
    model : BrainModel
        Trained without this person.
    store, table, subject
    n_epochs : int
        To calibrate on, the first ones; 0: all.
    average : bool
        Average the repetitions of a test picture. Calibration epochs are single ones.
    label_free, few_shot : optional

    Raises
    ------
    ValueError
        If the model was trained on this person, or calibration and test share pictures or concepts.
    """
    if subject in model.subjects:
        raise ValueError(
            f"the model was trained on {subject!r}: its figures would not be inductive; train with this person among "
            "data.held_out_subjects"
        )
    first, last = (person_epochs(store, subject, split, n) for split, n in (("train", n_epochs), ("test", 0)))
    table.check_disjoint({"calibration": first.stimulus, "test": last.stimulus})
    calibration, test = model.embed([first]), model.embed([last], average=average)
    labelled = labelled_epochs(model, calibration, table)
    return compare_calibrations(
        labelled_epochs(model, test, table), combination(test.report.modalities), window=labelled.brain_embeds,
        labelled=labelled, label_free=label_free, few_shot=few_shot,
    )  # fmt: skip


def _anonymous(epochs: SignalEpochs) -> SignalEpochs:
    """Drop what was shown."""
    return SignalEpochs(
        data=epochs.data, sfreq=epochs.sfreq, tmin=epochs.tmin, ch_names=epochs.ch_names, ch_types=epochs.ch_types,
        positions=epochs.positions, subject=epochs.subject,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m alignment.person_calibration", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the model: <run dir>/brain")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--store", help="store that holds the person's epochs")
    given.add_argument("--recording", type=Path, help="a recording of epochs, instead of a store")
    parser.add_argument("--targets", type=Path, help="table of targets, for --labelled and --compare")
    parser.add_argument("--subject", required=True, help="the person, and the name of the files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the calibration; not inside a bundle")
    parser.add_argument("--labelled", action="store_true", help="use what was shown (few-shot)")
    parser.add_argument("--epochs", type=int, default=0, metavar="N", help="calibrate on the first N; default: all")
    parser.add_argument("--compare", action="store_true", help="read the store's test epochs and write the figures")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if (arguments.labelled or arguments.compare) and arguments.targets is None:
        parser.error("--labelled and --compare need --targets: they ask what was shown")
    if arguments.compare and not arguments.store:
        parser.error("--compare needs --store: it reads the person's test epochs")
    model = BrainModel.load(arguments.model)
    table = read_target_table(arguments.targets) if arguments.targets else None
    if arguments.store:
        store = EpochStore.open(arguments.store)
        epochs, source = person_epochs(store, arguments.subject, "train", arguments.epochs), arguments.store
    else:
        with own_files():
            epochs, source = read_epochs(arguments.recording), str(arguments.recording)
        epochs = epochs.select(np.arange(epochs.n_epochs)[: arguments.epochs or None])
    if arguments.labelled:
        assert table is not None
        person = calibrate_labelled(model, epochs, table, source=source)
    else:
        person = calibrate_label_free(model, epochs, source=source)
    print(f"wrote {save_person(arguments.out, arguments.subject, person, arguments.model)}: {person.provenance}")
    if arguments.compare:
        assert table is not None
        figures = compare_person(model, store, table, arguments.subject, n_epochs=arguments.epochs)
        content = comparison_json(figures, subject=arguments.subject, store=arguments.store, split="test")
        write_atomic(arguments.out / f"{arguments.subject}.comparison.json", json.dumps(content, indent=1).encode())
        print(comparison_text(figures))


if __name__ == "__main__":
    main()
