"""`phosphene users` and `phosphene audit` from the command line."""

import json
from pathlib import Path

import pytest
import yaml

from serving.audit import AuditLog, read_audit_key
from serving.cli import main
from serving.vault import Vault


def test_a_group_is_created_changed_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description, out = tmp_path / "users.yaml", tmp_path / "access.yaml"
    description.write_text(yaml.safe_dump({"group": "lab", "users": ["anna", "ben"]}))
    create = ["users", "--json", "create-group", "--from", str(description), "--out", str(out)]
    assert main(create) == 0
    keys = json.loads(capsys.readouterr().out)["keys"]
    content = out.read_bytes()
    assert main(create) == 0
    assert json.loads(capsys.readouterr().out) == {"group": "lab", "keys": {}, "revoked": []}
    assert out.read_bytes() == content
    assert main(["users", "list", "--file", str(out)]) == 0
    listed = capsys.readouterr().out
    assert "anna" in listed and keys["anna"][:21] in listed and keys["anna"] not in listed + content.decode()
    assert main(["users", "revoke", "--file", str(out), "lab", "ben"]) == 0
    assert main(["users", "add", "--file", str(out), "lab", "carla"]) == 0
    assert "shown this once" in capsys.readouterr().out
    description.write_text(yaml.safe_dump({"group": "lab", "users": ["anna"]}))
    assert main(create) == 0
    assert json.loads(capsys.readouterr().out)["revoked"] == ["carla"]
    assert main(["users", "revoke", "--file", str(out), "lab", "ben"]) == 2


def test_an_audit_log_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, path = tmp_path / "audit.key", tmp_path / "audit.jsonl"
    assert main(["audit", "new-key", str(key)]) == 0
    assert main(["audit", "new-key", str(key)]) == 2
    log = AuditLog(path, key=read_audit_key(key))
    for status in (200, 422):
        log.append({"who": "lab/anna", "status": status})
    assert main(["audit", "verify", str(path), "--key", str(key)]) == 0
    told = capsys.readouterr().out
    assert "records 1 to 2" in told
    note = told.split()[-2:]
    assert main(["audit", "verify", str(path), "--key", str(key), *note]) == 0
    assert main(["audit", "verify", str(path), "--key", str(key), "--note", f"3{note[1][1:]}"]) == 1
    assert "older copy" in capsys.readouterr().out
    assert main(["audit", "verify", str(path), "--note", "2"]) == 2
    path.write_bytes(path.read_bytes().replace(b"422", b"200"))
    assert main(["audit", "verify", str(path), "--key", str(key)]) == 1
    assert "record 2 was changed" in capsys.readouterr().out
    assert main(["audit", "verify", str(tmp_path / "none")]) == 2


def test_a_master_key_is_made_once_and_is_good(tmp_path: Path) -> None:
    assert main(["vault", "new-key", str(tmp_path / "master.key")]) == 0
    before = (tmp_path / "master.key").read_bytes()
    assert main(["vault", "new-key", str(tmp_path / "master.key")]) == 2
    assert (tmp_path / "master.key").read_bytes() == before
    assert Vault(tmp_path / "master.key", tmp_path / "keys").cipher("lab/anna").encrypt(b"x", context="c")
