"""The request and answer models: limits, onsets, examples and words for confidence."""

import pytest
from pydantic import ValidationError

from serving.schema import (
    EXAMPLE_EMBEDDING,
    EXAMPLE_GENERATION,
    MAX_IMAGES,
    MAX_ONSETS,
    MAX_STEPS,
    EmbeddingResponse,
    GenerationFields,
    GenerationResponse,
    Problem,
)
from serving.settings import ReplicaSettings, ServingSettings
from serving.wording import confidence_in_words


@pytest.mark.parametrize(
    ("text", "seconds"), [("", ()), ("  ", ()), ("1.5", (1.5,)), ("0, 2.25 ,3e1", (0.0, 2.25, 30.0))]
)
def test_onsets_are_seconds(text: str, seconds: tuple[float, ...]) -> None:
    assert GenerationFields(onsets=text).onset_seconds() == seconds


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"onsets": "1,,2"}, "separated by commas"),
        ({"onsets": "nan"}, "between 0"),
        ({"onsets": "inf"}, "between 0"),
        ({"onsets": ",".join(["1"] * (MAX_ONSETS + 1))}, str(MAX_ONSETS)),
        ({"images": 0}, "1"),
        ({"images": MAX_IMAGES + 1}, str(MAX_IMAGES)),
        ({"num_inference_steps": MAX_STEPS + 1}, str(MAX_STEPS)),
        ({"guidance_scale": 0.5}, "1"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"seed": 2**40}, "seed"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_lies_outside_the_limits_is_refused_with_the_limit(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        GenerationFields(**fields)  # type: ignore[arg-type]


def test_limits_stand_in_the_published_schema() -> None:
    properties = GenerationFields.model_json_schema()["properties"]
    assert properties["images"]["maximum"] == MAX_IMAGES
    assert properties["num_inference_steps"]["anyOf"][0]["maximum"] == MAX_STEPS
    assert str(MAX_ONSETS) in properties["onsets"]["description"]


def test_examples_are_valid() -> None:
    GenerationResponse.model_validate(EXAMPLE_GENERATION)
    EmbeddingResponse.model_validate(EXAMPLE_EMBEDDING)


def test_words_get_stronger_with_confidence_and_say_noise_at_chance() -> None:
    words = [confidence_in_words(value) for value in (0.0, 0.5, 0.79, 0.8, 0.95, 0.99, 1.0)]
    assert len(dict.fromkeys(words)) == 4
    assert "no better than noise" in words[0] == words[1] == words[2]
    assert "clearly above noise" in words[-1]


def test_answers_are_frozen_and_take_no_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        Problem(type="a", title="b", status=400, detail="c", code="d", more=1)  # type: ignore[call-arg]


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_replicas"):
        ReplicaSettings(n_replicas=3, max_replicas=2)
    with pytest.raises(ValidationError, match="max_upload_mb"):
        ServingSettings(bundle="x", max_upload_mb=10_000)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="prot"):
        ServingSettings(bundle="x", prot=1)  # type: ignore[arg-type, call-arg]
