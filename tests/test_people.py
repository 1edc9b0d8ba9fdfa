"""Names of people are known to their own group of users and to nobody else, on every way in."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_service import INFO, FakeBackend, fake_service, make_epochs

from serving.access_settings import AccessSettings
from serving.people import People
from serving.settings import JobSettings, ServingSettings
from serving.user_groups import AccessFile, GroupDescription, create_group, write_access_file

RECORDING = make_epochs(1).to_bytes()


def name_person(folder: Path, group: str, subject: str, kind: str = "eeg.few-shot") -> None:
    """Write files that have the names of a calibration."""
    place = folder / INFO.id / group
    place.mkdir(parents=True, exist_ok=True)
    for suffix in ("json", "safetensors"):
        (place / f"{subject}.{kind}.{suffix}").write_text("{}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    people = tmp_path_factory.mktemp("people")
    name_person(people, "lab", "anna.1")
    name_person(people, "lab", "anna.1", "meg.label-free")
    name_person(people, "lab", "both")
    name_person(people, "clinic", "carl")
    name_person(people, "clinic", "both")
    (people / INFO.id / "lab" / "notes.json").write_text("{}")
    return people


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(scope="module")
def service(
    folder: Path, backend: FakeBackend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, str]]]:
    place = tmp_path_factory.mktemp("service")
    access, keys = create_group(AccessFile(), GroupDescription(group="lab", users=("lea",)))
    access, more = create_group(access, GroupDescription(group="clinic", users=("cleo",)))
    write_access_file(place / "access.yaml", access)
    settings = ServingSettings(
        bundle=Path("unused"),
        people_folder=str(folder),
        access=AccessSettings(file=str(place / "access.yaml")),
        jobs=JobSettings(folder=str(place / "jobs"), beat_s=0.1),
    )
    with fake_service(settings, backend) as url:
        yield url, {"lab": keys["lea"], "clinic": more["cleo"]}


def asking(service: tuple[str, dict[str, str]], group: str) -> httpx.Client:
    url, keys = service
    headers = {"Authorization": f"Bearer {keys[group]}"}
    return httpx.Client(base_url=url, headers=headers, timeout=30.0, trust_env=False)


def send(http: httpx.Client, route: str, subject: str) -> dict[str, Any]:
    """Send a request; return what came of it in the end, without what differs from one request to the next."""
    response = http.post(route, files={"file": RECORDING}, data={"subject": subject})
    found: dict[str, Any] = response.json()
    deadline = time.monotonic() + 60.0
    while response.status_code == 202 and found["status"] not in ("finished", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        found = http.get(response.headers["location"]).json()
    return found.get("problem") or found.get("result") or found


def test_a_group_sees_its_own_people_only(service: tuple[str, dict[str, str]]) -> None:
    seen = {}
    for group in ("lab", "clinic"):
        with asking(service, group) as http:
            (bundle,) = http.get("/v1/bundles").json()["bundles"]
            seen[group] = bundle["calibrated"]
    assert seen == {"lab": ["anna.1", "both"], "clinic": ["both", "carl"]}


@pytest.mark.parametrize("route", ["/v1/generations", "/v1/embeddings", "/v1/jobs"])
def test_somebody_elses_person_is_answered_like_one_that_does_not_exist(
    service: tuple[str, dict[str, str]], backend: FakeBackend, route: str
) -> None:
    with asking(service, "lab") as http:
        other, nobody = send(http, route, "carl"), send(http, route, "zoe9")
        assert other["code"] == nobody["code"] == "bad_field"
        assert other["detail"].replace("carl", "zoe9") == nobody["detail"]
        n_before = len(backend.people)
        assert "epochs" in send(http, route, "anna.1") and "epochs" in send(http, route, "both")
    first, second = backend.people[n_before:]
    assert [(one.group, one.modalities, one.kind) for one in first] == [
        ("lab", "eeg", "few-shot"),
        ("lab", "meg", "label-free"),
    ]
    assert [one.group for one in second] == ["lab"], "a name of the same spelling elsewhere is another person"


def test_without_keys_everybody_is_known_and_a_double_name_is_refused(folder: Path) -> None:
    settings = ServingSettings(bundle=Path("unused"), people_folder=str(folder))
    with fake_service(settings, FakeBackend()) as url, httpx.Client(base_url=url, trust_env=False) as http:
        (bundle,) = http.get("/v1/bundles").json()["bundles"]
        assert set(bundle["calibrated"]) == {"anna.1", "both", "carl"}
        assert "epochs" in send(http, "/v1/embeddings", "carl")
        refused = send(http, "/v1/embeddings", "both")
    assert refused["code"] == "bad_field" and "lab" in refused["detail"] and "clinic" in refused["detail"]


def test_names_are_looked_up_and_never_lead_elsewhere(folder: Path) -> None:
    people = People(str(folder))
    assert people.files(INFO.id, "lab/lea", "../clinic/carl") == ()
    assert people.files(INFO.id, "lab/lea", "") == () and people.files(INFO.id, "l", "anna.1") == ()
    assert people.known("another bundle", "") == () and People("").known(INFO.id, "") == ()
    assert people.known(INFO.id, "lab/") == ("anna.1", "both"), "members of a group that shares"


def test_names_are_not_given_to_an_open_network() -> None:
    with pytest.raises(ValueError, match="names of people"):
        ServingSettings(bundle=Path("x"), people_folder="people", access=AccessSettings(allow_open_network=True))
