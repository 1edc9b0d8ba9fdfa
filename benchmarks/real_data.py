"""Measure decoding of the real recordings in ../shared/data (or PHOSPHENE_TEST_DATA) and write it to BENCHMARKS.md.

Every configuration ``configs/real_*.yaml`` is run, and the published THINGS-EEG2 embeddings are retrieved with and
without a map fitted on other pictures. About 5 minutes on one core.
"""

import argparse
import os
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from report_file import ROOT, write_section  # noqa: E402
from tqdm import tqdm  # noqa: E402

from alignment.embedding_map import HeldOutRetrieval, held_out_retrieval  # noqa: E402
from alignment.erp_study import ErpStudyConfig, run_study  # noqa: E402
from alignment.evaluation_report import EvaluationReport, Figure, figure_line, markdown_rows  # noqa: E402
from alignment.resampling import bootstrap_means  # noqa: E402
from alignment.retrieval import cosine_similarity  # noqa: E402
from alignment.retrieval_figures import RetrievalAnswers, retrieval_figures  # noqa: E402
from alignment.retrieval_metrics import one_to_one_accuracy, own_ranks  # noqa: E402
from encoders.datasets.things_eeg2_embeddings import N_AVERAGED, read_test_embeddings  # noqa: E402

N_SEEDS = 5


def main() -> None:
    """Run everything, or the configurations named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="configurations without `.yaml`; default: all, and the embeddings")
    parser.add_argument("--out", type=Path, help="also write a report.json here")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("PHOSPHENE_TEST_DATA") or ROOT.parent / "shared" / "data")
    names = arguments.names or sorted(path.stem for path in (ROOT / "configs").glob("real_*.yaml"))
    figures: list[Figure] = []
    for name in tqdm(names, desc="studies"):
        config = ErpStudyConfig.model_validate(yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()))
        found = run_study(config, folder).figures
        figures += found
        tqdm.write("\n".join(f"{name}: {figure_line(one)}" for one in found))
    if arguments.names:
        return
    embedding_figures, notes = embeddings(folder)
    write_section("Real recordings", _body(figures, embedding_figures, notes))
    if arguments.out:
        report = EvaluationReport(
            title="Real recordings of public data sets", data="see each figure's data set", simulated=False,
            figures=tuple(figures + embedding_figures), confidence=(), adapted=(), notes=tuple(notes),
            single_trial_missing="THINGS-EEG1 and THINGS-EEG2 were published as averages",
        )  # fmt: skip
        report.write(arguments.out)


def embeddings(folder: Path) -> tuple[list[Figure], list[str]]:
    """Retrieve the published embeddings by their cosine, and mapped by what other pictures teach."""
    published = read_test_embeddings(folder)
    brain, image = published.brain_embeds, published.image_embeds
    rows = np.arange(len(brain))
    plain = cosine_similarity(brain, image)
    runs = [held_out_retrieval(brain, image, seed=seed) for seed in tqdm(range(N_SEEDS), desc="maps")]
    noise = np.random.default_rng(0).standard_normal((20 * len(brain), brain.shape[1])).astype(np.float32)
    found = []
    for name, selection, similarity, noise_similarity, fold in (
        ("cosine", "nothing chosen here", plain, cosine_similarity(noise, image), None),
        ("mapped", "folds of the other pictures", runs[0].similarity, runs[0].noise_similarity, runs[0].fold),
    ):
        group = {"dataset": "things_eeg2", "person": "sub-08", "embeddings": name}
        answers = RetrievalAnswers(
            similarity, noise_similarity, rows, N_AVERAGED, "the 200 test pictures", selection, group, fold
        )
        found += retrieval_figures(answers)
    return found, _notes(plain, runs)


def _notes(plain: np.ndarray, runs: list[HeldOutRetrieval]) -> list[str]:
    gain = (own_ranks(runs[0].similarity) <= 1).astype(float) - (own_ranks(plain) <= 1)
    low, high = bootstrap_means(gain[:, None], np.arange(len(gain)))[0]
    by_seed = [float((own_ranks(run.similarity) <= 1).mean()) for run in runs]
    return [
        f"Gain of the map in top-1 of 200, picture by picture: {gain.mean():.3f} [{low:.3f}, {high:.3f}]. With "
        f"{len(runs)} ways to deal the folds, the first one in the table: {min(by_seed):.3f} to {max(by_seed):.3f}.",
        f"One-to-one matching of the unmapped embeddings gives {one_to_one_accuracy(plain):.3f}; it is no top-1.",
    ]


def _body(figures: list[Figure], embedding_figures: list[Figure], notes: list[str]) -> str:
    return "\n".join(
        [
            "`python benchmarks/real_data.py`: real recordings of public data sets; people, runs or pictures left out, "
            "all settings chosen among the others. Noise input: white noise with the channels' deviations (embeddings: "
            "normal vectors) through the same decoders. Intervals over people, runs (few, so rough) or pictures; p of "
            "1,000 permutations within them.",
            "",
            "Evoked responses. Yardsticks: THINGS-EEG1 0.706, UCI 0.844, Muse N170 0.663 and 0.580, P300 0.766.",
            "",
            *markdown_rows(figures),
            "",
            "Greedy retrieval of THINGS-EEG2 test pictures by published ATM-S embeddings; 80 presentations averaged; "
            "no single-trial embeddings were published.",
            "",
            *markdown_rows(embedding_figures),
            "",
            *notes,
        ]
    )


if __name__ == "__main__":
    main()
