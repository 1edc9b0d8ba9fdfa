"""How hard the simulated task is: ridge and the ideal observer, for each modality and for both.

    python -m encoders.difficulty --targets FILE

prints 200-way zero-shot top-1 figures, mean over people, in about 4 minutes on two cores. Ridge is trained per person
on single trials of 6 images of each of 500 concepts, each shown twice; "averaged" means 4 repetitions at test.

The noise scales of `SimulationConfig` (EEG 1.07, MEG 2.4) were set once with this table, from the CLIP embeddings of
the demo's scenes, and are not moved afterwards. EEG was set by ridge (wanted: 0.33 averaged), MEG by the observer (as
good as for EEG, and 10 points of room for fusion). Chance is 0.005, n = 200 images x 4 people:

    =========  ============  ==============  ==================  ===============  =================
    recording  ridge single  ridge averaged  embedding averaged  observer single  observer averaged
    =========  ============  ==============  ==================  ===============  =================
    eeg        0.075         0.331           0.746               0.266            0.865
    meg        0.053         0.199           0.755               0.290            0.881
    eeg+meg    0.128         0.516           0.964               0.583            0.985
    =========  ============  ==============  ==================  ===============  =================

The demo CLIP was trained anew since. With the same scales and its embeddings the report of ``configs/demo.yaml``
has ridge, averaged, at 0.43 for EEG, 0.17 for MEG and 0.55 for both, and the observer at 0.85, 0.88 and 0.99.

"embedding" is the least-squares estimate of the embedding with everything known, ranked by cosine; it shows how much
of the observer's lead comes from scoring candidates by likelihood. Ridge does worse on MEG than on EEG although MEG
holds as much information; it has 4 times as many weights to learn from equally many trials.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tqdm import tqdm

from encoders.baselines import RidgeDecoder, centred_cosine, fit_ridge, top_1
from encoders.epochs import SignalEpochs
from encoders.preprocess import Preprocessor, default_preprocess
from encoders.sensors import standard_layout
from encoders.simulate import DEFAULT_LAYOUTS, BrainSimulator, SimulationConfig

TRAIN_SEED, VAL_SEED, TEST_SEED = 101, 102, 103
PENALTIES = (0.1, 0.3, 1.0)
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """How many recordings the figures rest on."""

    images_per_concept: int = 6
    train_repetitions: int = 2
    test_repetitions: int = 4


def calibration_report(
    simulator: BrainSimulator, targets: Mapping[str, NDArray[np.generic]], recipe: Recipe = Recipe()
) -> dict[str, dict[str, float]]:
    """Measure top-1 identification among the test images, mean over people.

    Parameters
    ----------
    simulator : BrainSimulator
        Built with the training embeddings of ``targets``.
    targets : mapping of str to ndarray
        ``train_embeds`` (n, d) float32 raw, ``train_concepts`` (n,) int64, ``val_embeds`` and ``test_embeds``.
    recipe : Recipe
        Amounts of data.

    Returns
    -------
    dict of str to dict of str to float
        Row "eeg", "meg" or "eeg+meg"; columns "ridge single", "ridge averaged", "embedding averaged" (posterior mean
        ranked by cosine), "observer single" and "observer averaged". Chance is one over the number of test images.
    """
    rows = first_images(targets["train_concepts"].astype(np.int64), recipe.images_per_concept)
    train, val, test = (unit(targets[f"{split}_embeds"].astype(np.float32)) for split in ("train", "val", "test"))
    measured = [
        _measure(simulator, subject, train[rows], val, test, recipe)
        for subject in tqdm(range(simulator.config.n_subjects), desc="people", file=sys.stderr)
    ]
    return {
        name: {column: float(np.mean([one[name][column] for one in measured])) for column in measured[0][name]}
        for name in measured[0]
    }


def first_images(concepts: NDArray[np.int64], n_images: int) -> NDArray[np.int64]:
    """Return the rows of the first ``n_images`` images of each concept."""
    rows = np.concatenate([np.flatnonzero(concepts == concept)[:n_images] for concept in np.unique(concepts)])
    ordered: NDArray[np.int64] = np.sort(rows)
    return ordered


def unit(embeds: Float) -> Float:
    """Return the embeddings with length 1."""
    rows: Float = embeds / np.linalg.norm(embeds, axis=1, keepdims=True)
    return rows


def _measure(
    simulator: BrainSimulator, subject: int, train: Float, val: Float, test: Float, recipe: Recipe
) -> dict[str, dict[str, float]]:
    ids = tuple(str(i) for i in range(len(test)))
    recordings: dict[str, dict[str, SignalEpochs]] = {"single": {}, "averaged": {}}
    scores: dict[str, dict[str, NDArray[np.float64]]] = {}
    for modality, layout in DEFAULT_LAYOUTS.items():
        single = simulator.record(
            test,
            modality=modality,
            subject=subject,
            n_repetitions=recipe.test_repetitions,
            seed=TEST_SEED,
            stimulus=ids,
        )
        recordings["single"][modality], recordings["averaged"][modality] = single, single.average_repetitions()
        preprocessor, decoder = _fit(simulator, modality, subject, train, val, recipe)
        scores[modality] = {}
        for kind in recordings:
            epochs = recordings[kind][modality]
            predicted = decoder.predict(preprocessor(epochs).data)
            cosine = centred_cosine(predicted, test, decoder.embed_mean)
            scores[modality][f"ridge {kind}"] = cosine.astype(np.float64)
            scores[modality][f"observer {kind}"] = simulator.ideal_observer(
                epochs, test, modality=modality, layout=layout, subject=subject
            )
    fused = "+".join(scores)
    scores[fused] = {column: np.sum([one[column] for one in scores.values()], axis=0) for column in scores["eeg"]}
    embed_mean = simulator.readouts.embed_mean.astype(np.float32)
    found: dict[str, dict[str, float]] = {}
    for name in scores:
        known = {modality: recordings["averaged"][modality] for modality in name.split("+")}
        ideal = simulator.ideal_embeds(known, subject=subject).astype(np.float32)
        found[name] = {column: top_1(np.asarray(table)) for column, table in scores[name].items()}
        found[name]["embedding averaged"] = top_1(centred_cosine(ideal, test, embed_mean))
    return found


def _fit(
    simulator: BrainSimulator, modality: str, subject: int, train: Float, val: Float, recipe: Recipe
) -> tuple[Preprocessor, RidgeDecoder]:
    """Fit the default preprocessing and ridge on single trials of one person."""
    epochs = simulator.record(
        train, modality=modality, subject=subject, n_repetitions=recipe.train_repetitions, seed=TRAIN_SEED
    )
    held_out = simulator.record(val, modality=modality, subject=subject, seed=VAL_SEED)
    preprocessor = Preprocessor(default_preprocess(modality), standard_layout(DEFAULT_LAYOUTS[modality])).fit(epochs)
    data = preprocessor(epochs).data
    del epochs
    targets = np.repeat(train, recipe.train_repetitions, axis=0)
    return preprocessor, fit_ridge(data, targets, (preprocessor(held_out).data, val), PENALTIES)


def format_report(report: Mapping[str, Mapping[str, float]], n_images: int, n_subjects: int) -> str:
    """Return the report as a table with chance and n."""
    columns = list(next(iter(report.values())))
    lines = [f"{n_images}-way top-1, chance {1 / n_images:.3f}, n = {n_images} images x {n_subjects} people"]
    lines.append("".join(f"{title:>20}" for title in ["recording", *columns]))
    lines += [f"{name:>20}" + "".join(f"{row[column]:20.3f}" for column in columns) for name, row in report.items()]
    return "\n".join(lines)


def main() -> None:
    """Print the table for a file of targets."""
    parser = argparse.ArgumentParser(description="How well ridge and the ideal observer identify images.")
    parser.add_argument("--targets", type=Path, required=True, help="safetensors with train, val and test embeddings")
    parser.add_argument("--eeg-noise", type=float, help="noise scale of the EEG instead of the default")
    parser.add_argument("--meg-noise", type=float, help="noise scale of the MEG instead of the default")
    arguments = parser.parse_args()
    targets = load_file(arguments.targets)
    given = {"eeg": arguments.eeg_noise, "meg": arguments.meg_noise}
    default = SimulationConfig()
    scale = {name: default.noise_scale[name] if value is None else value for name, value in given.items()}
    config = SimulationConfig(noise_scale=scale)
    embeds = targets["train_embeds"]
    simulator = BrainSimulator(config, embeds.shape[1], embeds, targets["train_concepts"])
    report = calibration_report(simulator, targets)
    print(f"noise scale {scale}")
    print(format_report(report, len(targets["test_embeds"]), config.n_subjects))


if __name__ == "__main__":
    main()
