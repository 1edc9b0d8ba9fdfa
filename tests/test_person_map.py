"""A calibration says what it used, survives saving, and is refused where it does not belong."""

import json
from pathlib import Path

import numpy as np
import pytest

from alignment.few_shot import FewShotConfig
from alignment.person_map import (
    LabelFreeConfig,
    PersonMap,
    fit_label_free,
    fit_labelled,
    load_person,
    save_person,
    without_csls,
)
from alignment.person_whitening import csls, fit_whitening
from alignment.retrieval import cosine_similarity

D = 8


def window(n: int = 60, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((n, D)) * np.linspace(1, 4, D) + 2).astype(np.float32)


def a_model(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "brain.safetensors").write_bytes(content)
    return folder


def few_shot() -> PersonMap:
    images = window(40, seed=1)
    return fit_labelled(images[:, ::-1], images, [str(i) for i in range(40)], "eeg", FewShotConfig(), source="s")


def test_label_free_is_whitening_then_csls_with_the_window() -> None:
    person = fit_label_free(window(), "eeg", LabelFreeConfig(shrinkage=0.3, n_neighbours=4))
    fresh, gallery = window(9, seed=2), window(20, seed=3)
    fitted = fit_whitening(window(), 0.3)
    assert np.allclose(person.transform(fresh), fitted(fresh), atol=1e-5)
    cosines, reference = (cosine_similarity(fitted(one), gallery) for one in (fresh, window()))
    assert np.allclose(person.similarity(fresh, gallery), csls(cosines, reference, 4), atol=1e-5)
    assert np.allclose(without_csls(person).similarity(fresh, gallery), cosines, atol=1e-5)


def test_an_answer_does_not_depend_on_the_other_epochs() -> None:
    person = fit_label_free(window(), "eeg", LabelFreeConfig())
    fresh, gallery = window(9, seed=2), window(20, seed=3)
    alone = np.concatenate([person.similarity(fresh[[i]], gallery) for i in range(9)])
    assert np.allclose(alone, person.similarity(fresh, gallery), atol=1e-5)


def test_a_whitened_gallery_has_a_round_covariance() -> None:
    config = LabelFreeConfig(shrinkage=1.0, n_neighbours=0, whiten_gallery=True)
    person = fit_label_free(window(), "eeg", config)
    fresh, gallery = window(9, seed=2), window(200, seed=3)
    expected = cosine_similarity(person.transform(fresh), fit_whitening(gallery)(gallery))
    assert np.allclose(person.similarity(fresh, gallery), expected)


@pytest.mark.parametrize("make", [few_shot, lambda: fit_label_free(window(), "eeg+meg", LabelFreeConfig(), source="s")])
def test_saved_is_loaded_and_says_what_it_used(make: object, tmp_path: Path) -> None:
    person: PersonMap = make()  # type: ignore[operator]
    model = a_model(tmp_path / "brain")
    path = save_person(tmp_path / "people", "sub-08", person, model)
    assert path.name == f"sub-08.{person.modalities}.{person.kind}.json"
    again = load_person(path, model)
    fresh, gallery = window(9, seed=2), window(20, seed=3)
    assert np.array_equal(again.similarity(fresh, gallery), person.similarity(fresh, gallery))
    assert again.facts == person.facts and again.facts["source"] == "s"
    told = json.loads(path.read_text())["provenance"]
    assert told == again.provenance
    assert told in (
        "few-shot, 40 labelled trials of this person", "label-free, 60 epochs without labels of this person",
    )  # fmt: skip


def test_another_model_and_damage_are_refused(tmp_path: Path) -> None:
    model = a_model(tmp_path / "brain")
    path = save_person(tmp_path / "people", "sub-08", few_shot(), model)
    with pytest.raises(ValueError, match="belongs to another model"):
        load_person(path, a_model(tmp_path / "other", b"other"))
    tensors = path.with_suffix(".safetensors")
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="does not match its sha256"):
        load_person(path, model)
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99"):
        load_person(path, model)


@pytest.mark.parametrize("name", ["../up", "", "a/b", ".hidden", "x" * 200])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot name a file"):
        save_person(tmp_path, name, few_shot(), a_model(tmp_path / "brain"))


def test_windows_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0 epochs"):
        fit_label_free(window(0), "eeg", LabelFreeConfig())
    with pytest.raises(ValueError, match="n_neighbours is 10, expected at most the 9"):
        fit_label_free(window(9), "eeg", LabelFreeConfig())
