"""The page holds every figure, its plots are pictures in the file, and nothing is loaded or run."""

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignment.answer_calibration import ScoredAnswers, confidence_figures
from alignment.evaluation_report import AdaptedFigures, EvaluationReport, Figure
from alignment.report_page import at_a_glance, page_text, write_page
from alignment.retrieval_figures import RetrievalAnswers, retrieval_figures

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def answers(count: int, group: dict[str, str], seed: int = 0) -> RetrievalAnswers:
    generator = np.random.default_rng(seed)
    target = np.arange(60)
    similarity = generator.standard_normal((60, 60))
    similarity[target, target] += 1.2 * count
    return RetrievalAnswers(
        similarity, generator.standard_normal((60, 60)), target, count, "test pictures", "validation pictures", group
    )


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    groups = [{"modality": "eeg"}] + [{"modality": "eeg", "person": one} for one in ("sim-01", "sim-02")]
    groups += [{"modality": "eeg", "window": one} for one in ("0 to 0.1 s", "0.1 to 0.2 s")]
    figures = [
        figure
        for index, group in enumerate(groups)
        for count in (1, 2)
        for figure in retrieval_figures(answers(count, group, index), gallery_sizes=(20,), n_bootstrap=50)
    ]
    sides = [
        ScoredAnswers(one.similarity, one.target, tuple(f"{name} {i}" for i in range(60)), 1, name, {"modality": "eeg"})
        for name, one in (("validation", answers(1, {}, 8)), ("test", answers(1, {}, 9)))
    ]
    confidence = confidence_figures(sides[0], sides[1], {"white": answers(0, {}).similarity}, n_bootstrap=50)
    grouped = answers(1, {"modality": "eeg", "adaptation": "csls"}, 3)
    adapted = AdaptedFigures(
        name="csls", uses="the evaluated epochs <themselves>", transductive=True,
        figures=tuple(retrieval_figures(grouped, gallery_sizes=(), n_bootstrap=50)),
    )  # fmt: skip
    return EvaluationReport(
        title="Bundle <b>&co</b>", data="simulated people", simulated=True, figures=tuple(figures),
        confidence=(confidence,), adapted=(adapted,), single_trial_missing="", notes=("chosen in advance",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def text(report: EvaluationReport) -> str:
    return page_text(report)


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_nothing_runs_and_nothing_is_loaded(text: str) -> None:
    tags = Tags(text).found
    assert not {"script", "link", "iframe", "object", "embed", "form"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset", "action")]
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert "<b>" not in text and "Bundle &lt;b&gt;&amp;co&lt;/b&gt;" in text


def test_every_figure_and_every_control_is_shown(report: EvaluationReport, text: str) -> None:
    shown = [*at_a_glance(report.figures), *report.adapted[0].figures, *report.figures]
    n_tables = 4
    assert text.count("<tr>") == len(shown) + n_tables + len(report.confidence)
    for word in ("Simulated data.", "chosen in advance", "validation pictures", "noise input", "of 1000", "60 by image",
                 "calibration error", "AUROC", "Chance", "single trial", "chosen on"):  # fmt: skip
        assert word in text.replace("&nbsp;", " ")
    for one in report.figures:
        assert f"<td>{one.value:.3f}</td>" in text


def test_what_was_adapted_is_under_its_own_heading_with_what_it_used(report: EvaluationReport, text: str) -> None:
    before, after = text.split("<h2>Adapted to the person: csls</h2>")
    assert "Not inductive" in after and "Not inductive" not in before
    assert "Uses: the evaluated epochs &lt;themselves&gt;. Transductive" in after
    assert "csls" not in before and f"<td>{report.adapted[0].figures[0].value:.3f}</td>" in after


def test_the_glance_has_single_trials_and_the_largest_averages_of_everybody(report: EvaluationReport) -> None:
    def told(one: Figure) -> tuple[str, int, int]:
        assert dict(one.group) == {"modality": "eeg"}
        return one.metric, one.n_averaged, one.gallery_size

    found = [told(one) for one in at_a_glance(report.figures)]
    assert sorted(found) == [("top_1", 1, 60), ("top_1", 2, 60), ("top_5", 1, 60), ("top_5", 2, 60)]


def test_seven_plots_are_pictures_with_something_on_them(text: str) -> None:
    images = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)
    assert len(images) == 7
    for one in images:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_the_page_is_the_same_each_time(report: EvaluationReport, text: str) -> None:
    assert page_text(report) == text


def test_plots_without_data_are_left_out(report: EvaluationReport) -> None:
    only = report.model_copy(update={"confidence": (), "figures": tuple(report.select("top_1", modality="eeg"))})
    assert len(re.findall("<figure>", page_text(only))) == 2


@pytest.mark.skipif(not CHROMIUM, reason="no chromium here (apt-get install chromium)")
def test_a_browser_shows_it(report: EvaluationReport, tmp_path: Path) -> None:
    write_page(report, tmp_path / "report.html")
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    arguments += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,1500", "--hide-scrollbars"]
    command = [str(CHROMIUM), *arguments, f"--screenshot={tmp_path / 'page.png'}", f"file://{tmp_path / 'report.html'}"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert pixels.shape[:2] == (1500, 1100) and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
