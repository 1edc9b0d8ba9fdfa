"""Multipart forms of the POST routes, and the refusals that their documentation lists."""

from typing import Any

from fastapi import UploadFile
from pydantic import Field

from serving.problems import CODES, PROBLEM_TYPE
from serving.schema import MAX_FILES, EmbeddingFields, GenerationFields, Problem

_FILES = "one recording, or an EEG and a MEG recording of the same stimuli; the format is recognised by content"
_UNDOCUMENTED = (405, 499)
# Where keys are asked for, every route but those of health may refuse with these.
AT_THE_DOOR = (401, 403, 429, 503)


class GenerationForm(GenerationFields):
    """The multipart form of a generation."""

    file: list[UploadFile] = Field(min_length=1, max_length=MAX_FILES, description=_FILES)


class EmbeddingForm(EmbeddingFields):
    """The multipart form of an embedding."""

    file: list[UploadFile] = Field(min_length=1, max_length=MAX_FILES, description=_FILES)


def responses_with(example: dict[str, object], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Document the answer with an example, and every refusal with its codes."""
    accepted: dict[int | str, dict[str, Any]] = {status: {"content": {"application/json": {"example": example}}}}
    return accepted | refusals(*{refused for refused, _ in CODES.values()} - set(_UNDOCUMENTED))


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document refusals with their codes."""
    by_status: dict[int | str, dict[str, Any]] = {
        status: {"description": "", "content": {PROBLEM_TYPE: {}}} for status in sorted(statuses)
    }
    for code, (refused, title) in CODES.items():
        if refused not in by_status:
            continue
        entry = by_status[refused]
        entry["description"] += f"`{code}`: {title}. "
        entry["content"][PROBLEM_TYPE] = {
            "schema": Problem.model_json_schema(ref_template="#/components/schemas/{model}"),
            "example": Problem(
                type=f"urn:phosphene:problem:{code}", title=title, status=refused, detail=title, code=code
            ).model_dump(),
        }
    return by_status


def stream_of_events(description: str) -> dict[str, Any]:
    """Document an answer of server-sent events."""
    return {"description": description, "content": {"text/event-stream": {"schema": {"type": "string"}}}}
