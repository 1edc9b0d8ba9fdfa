"""`phosphene erase-me` against a service behind keys."""

import json
from pathlib import Path

import pytest
from fake_service import FakeBackend, fake_service, make_epochs

from serving.access_settings import AccessSettings
from serving.cli import main
from serving.client import PhospheneClient
from serving.settings import JobSettings, ServingSettings
from serving.stream_command import KEY_VARIABLE
from serving.user_groups import AccessFile, GroupDescription, create_group, write_access_file


def test_it_erases_the_jobs_of_the_key_and_only_when_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, keys = create_group(AccessFile(), GroupDescription(group="lab", users=("anna", "ben")))
    write_access_file(tmp_path / "access.yaml", groups)
    settings = ServingSettings(
        bundle=Path("unused"),
        access=AccessSettings(file=str(tmp_path / "access.yaml")),
        jobs=JobSettings(folder=str(tmp_path / "jobs"), beat_s=0.1),
    )
    with (
        fake_service(settings, FakeBackend()) as url,
        PhospheneClient(url, api_key=keys["anna"]) as anna,
        PhospheneClient(url, api_key=keys["ben"]) as ben,
    ):
        ids = [client.wait(client.submit(make_epochs().to_bytes()).id).id for client in (anna, ben)]
        monkeypatch.setenv(KEY_VARIABLE, keys["anna"])
        assert main(["erase-me", "--url", url]) == 2
        assert "--yes" in capsys.readouterr().err and anna.job(ids[0]).status == "finished"
        assert main(["erase-me", "--url", url, "--yes", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"n_jobs": 1}
        assert ben.job(ids[1]).status == "finished"
        assert main(["erase-me", "--url", url, "--yes"]) == 0
        assert "jobs erased: 0" in capsys.readouterr().out
        monkeypatch.setenv(KEY_VARIABLE, "phk_no")
        assert main(["erase-me", "--url", url, "--yes"]) == 2
        assert "unknown_key" in capsys.readouterr().err
