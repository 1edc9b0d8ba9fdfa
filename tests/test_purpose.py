"""Purpose and consent: required when the operator says so, words of a list only, on record."""

import asyncio
from pathlib import Path

import httpx
import pytest
from fake_service import FakeBackend, make_epochs

from serving.access_settings import AccessSettings
from serving.routes import create_app
from serving.sandbox import Sandbox
from serving.settings import ParseLimits, ServingSettings

ROUTES = ("/v1/generations", "/v1/embeddings")


def codes(settings: AccessSettings, fields: list[dict[str, str]]) -> list[list[str]]:
    """Post a recording with each of the fields to both routes; return the codes, "ok" for an answer."""
    given = ServingSettings(bundle=Path("unused"), access=settings, parse=ParseLimits(n_processes=1))
    sandbox = Sandbox(given.parse, max_epochs=given.max_epochs)
    app = create_app(given, FakeBackend(), sandbox)
    content = make_epochs().to_bytes()

    async def run() -> list[list[str]]:
        await sandbox.start()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            found = []
            for data in fields:
                answers = [await client.post(route, files={"file": content}, data=data) for route in ROUTES]
                assert all((one.status_code == 200) is ("code" not in one.json()) for one in answers)
                assert all(one.status_code in (200, 422) for one in answers)
                found.append([one.json().get("code", "ok") for one in answers])
            return found

    try:
        return asyncio.run(run())
    finally:
        sandbox.close()


def test_by_default_nothing_is_asked_but_a_wrong_purpose_is_refused() -> None:
    said = [{}, {"purpose": "research"}, {"purpose": "diagnosis"}, {"purpose": "Anna Muster, born 1970"}]
    expected = ["ok", "ok", "purpose_refused", "purpose_refused"]
    assert codes(AccessSettings(), said) == [[one, one] for one in expected]


@pytest.mark.parametrize(
    ("required", "fields", "code"),
    [
        ({"require_purpose": True}, {"consent": "true"}, "purpose_missing"),
        ({"require_purpose": True}, {"purpose": "research"}, "ok"),
        ({"require_consent": True}, {"purpose": "research"}, "consent_missing"),
        ({"require_consent": True}, {"consent": "false"}, "consent_missing"),
        ({"require_consent": True}, {"consent": "true"}, "ok"),
        ({"purposes": ("assistive",)}, {"purpose": "research"}, "purpose_refused"),
    ],
)
def test_what_is_required_must_be_said(required: dict[str, bool], fields: dict[str, str], code: str) -> None:
    assert codes(AccessSettings.model_validate(required), [fields]) == [[code, code]]
