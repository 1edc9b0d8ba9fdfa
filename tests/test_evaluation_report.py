"""A figure without its controls cannot be made, and a report says what it must."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignment.evaluation_report import (
    AdaptedFigures,
    ConfidenceFigures,
    EvaluationReport,
    Figure,
    ReliabilityBin,
    figure_line,
    json_schema,
    markdown_rows,
)

WHOLE: dict[str, Any] = {
    "metric": "top_1", "value": 0.36, "chance": 0.005, "noise_baseline": 0.004, "n": 200, "n_groups": 200,
    "resampled": "image", "n_averaged": 1, "gallery_size": 200, "split": "test", "selection_split": "val",
    "interval": (0.29, 0.43), "permutation_p": 0.000999, "n_permutations": 1000, "group": {"person": "sub-08"},
}  # fmt: skip


def report(*figures: Figure, **changes: Any) -> EvaluationReport:
    values = {
        "title": "a bundle", "data": "simulated people", "simulated": True, "figures": figures, "confidence": (),
        "adapted": (), "single_trial_missing": "", "notes": (),
    }  # fmt: skip
    return EvaluationReport(**(values | changes))


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_a_figure_without_any_one_of_its_controls_cannot_be_made(name: str) -> None:
    Figure(**WHOLE)
    with pytest.raises(ValidationError, match=name):
        Figure(**{key: value for key, value in WHOLE.items() if key != name})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": "one_to_one_accuracy"}, "metric"),
        ({"n_permutations": 999}, "greater than or equal to 1000"),
        ({"selection_split": "test"}, "not a result"),
        ({"interval": (0.4, 0.3)}, "ends exchanged"),
        ({"permutation_p": 0.0001}, "below 1 /"),
        ({"permutation_p": 0.0}, "greater than 0"),
        ({"value": float("nan")}, "finite"),
        ({"n_groups": 201}, "at most n=200"),
        ({"n_averaged": 0}, "greater than or equal to 1"),
        ({"split": ""}, "at least 1 character"),
        ({"accuracy": 1.0}, "Extra inputs"),
    ],
)
def test_dishonest_figures_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Figure(**(WHOLE | changes))


def test_an_averaged_figure_needs_its_single_trial_figure_or_a_reason() -> None:
    single, averaged = Figure(**WHOLE), Figure(**(WHOLE | {"n_averaged": 4}))
    report(single, averaged)
    with pytest.raises(ValidationError, match="no single-trial figure"):
        report(averaged)
    with pytest.raises(ValidationError, match="no single-trial figure"):
        report(averaged, Figure(**(WHOLE | {"group": {"person": "another"}})))
    report(averaged, single_trial_missing="only averages were published")


def test_simulated_data_are_called_simulated() -> None:
    with pytest.raises(ValidationError, match="nor data says so"):
        report(Figure(**WHOLE), data="four people")


def test_confidence_is_measured_apart_from_its_calibration() -> None:
    values: dict[str, Any] = {
        "calibration_split": "val", "split": "test", "n_calibration": 10,
        "calibration_n_averaged": 1, "n": 10, "n_averaged": 1, "gallery_size": 200,
        "accuracy": 0.4, "mean_confidence": 0.4, "expected_calibration_error": 0.02, "interval": (0.01, 0.05),
        "bins": (ReliabilityBin(low=0, high=1, n=10, mean_confidence=0.4, accuracy=0.4),), "coverage": (0.5, 1.0),
        "selective_accuracy": (0.6, 0.4), "accuracy_at_half": 0.6, "gain_at_half": 1.5, "surrogate_auroc": {},
        "group": {},
    }  # fmt: skip
    ConfidenceFigures(**values)
    with pytest.raises(ValidationError, match="calibrate on validation data"):
        ConfidenceFigures(**(values | {"calibration_split": "test"}))
    with pytest.raises(ValidationError, match="same length"):
        ConfidenceFigures(**(values | {"coverage": (1.0,)}))


def test_a_report_survives_its_file_and_a_stripped_file_is_refused(tmp_path: Path) -> None:
    whole = report(Figure(**WHOLE), notes=("chosen in advance",))
    whole.write(tmp_path / "report.json")
    assert EvaluationReport.read(tmp_path / "report.json") == whole
    text = (tmp_path / "report.json").read_text()
    (tmp_path / "report.json").write_text(text.replace('"chance": 0.005,', ""))
    with pytest.raises(ValidationError, match="chance"):
        EvaluationReport.read(tmp_path / "report.json")
    required = json_schema()["$defs"]["Figure"]["required"]
    assert set(required) == set(WHOLE)


def test_text_says_everything() -> None:
    figure = Figure(**WHOLE)
    for text in (figure_line(figure), "\n".join(markdown_rows([figure]))):
        for part in ("0.360", "0.290", "0.430", "0.005", "0.004", "0.001", "200", "test", "val", "sub-08", "by image"):
            assert part in text
    assert report(figure).select("top_1", person="sub-08") == [figure]
    assert report(figure).select("top_1") == []


def test_adapted_figures_say_so_and_never_stand_among_the_inductive_ones(tmp_path: Path) -> None:
    plain, adapted = Figure(**WHOLE), Figure(**(WHOLE | {"group": {"person": "sub-08", "adaptation": "csls"}}))
    some = AdaptedFigures(name="csls", uses="the person's epochs", transductive=False, figures=(adapted,))
    whole = report(plain, adapted=(some,))
    whole.write(tmp_path / "report.json")
    assert EvaluationReport.read(tmp_path / "report.json") == whole
    with pytest.raises(ValidationError, match="stands among the inductive ones"):
        report(plain, adapted)
    with pytest.raises(ValidationError, match="does not say so in its group"):
        AdaptedFigures(name="csls", uses="the person's epochs", transductive=False, figures=(plain,))
    for missing in ("name", "uses", "transductive", "figures"):
        assert missing in json_schema()["$defs"]["AdaptedFigures"]["required"]


def test_a_report_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report(Figure(**WHOLE)).write(path)
    text = path.read_text()
    assert '"schema_version": 2' in text
    for other in (text.replace('"schema_version": 2', '"schema_version": 1'), text.replace('"schema_version": 2,', "")):
        path.write_text(other)
        with pytest.raises(ValueError, match="expected 2; evaluate again"):
            EvaluationReport.read(path)
