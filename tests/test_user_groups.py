"""Groups of users: created again without change, people added and removed, keys never in the file."""

import os
import stat
from pathlib import Path

import pytest
import yaml

from serving.api_keys import key_fits, split_key
from serving.user_groups import (
    AccessFile,
    GroupDescription,
    add_user,
    create_group,
    read_access_file,
    read_description,
    revoke_user,
    write_access_file,
)

LAB = GroupDescription(group="lab", users=("anna", "ben"))


def test_creating_a_group_again_changes_nothing(tmp_path: Path) -> None:
    access, keys = create_group(AccessFile(), LAB)
    assert set(keys) == {"anna", "ben"}
    write_access_file(tmp_path / "access.yaml", access)
    content = (tmp_path / "access.yaml").read_bytes()
    again, none = create_group(read_access_file(tmp_path / "access.yaml"), LAB)
    assert none == {} and again == access
    write_access_file(tmp_path / "access.yaml", again)
    assert (tmp_path / "access.yaml").read_bytes() == content


def test_keys_are_not_in_the_file_and_it_is_private(tmp_path: Path) -> None:
    access, keys = create_group(AccessFile(), LAB)
    path = tmp_path / "access.yaml"
    write_access_file(path, access)
    for user, key in keys.items():
        parts = split_key(key)
        assert parts is not None
        assert parts[1] not in path.read_text()
        assert key_fits(*parts, access.groups["lab"].users[user].sha256)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_changed_file_keeps_its_owner_group_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "access.yaml"
    access, _ = create_group(AccessFile(), LAB)
    write_access_file(path, access)
    group = next((one for one in os.getgroups() if one != os.getgid()), os.getgid())
    owner, group = (10001, 10001) if os.getuid() == 0 else (os.getuid(), group)
    os.chown(path, owner, group)
    path.chmod(0o640)
    write_access_file(path, revoke_user(access, LAB.group, LAB.users[0]))
    after = path.stat()
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (owner, group, 0o640)
    assert LAB.users[0] not in read_access_file(path).groups[LAB.group].users


def test_people_come_and_go_without_the_others_noticing() -> None:
    access, _ = create_group(AccessFile(), LAB)
    changed, keys = create_group(access, LAB.model_copy(update={"users": ("anna", "carla"), "shared": True}))
    assert set(keys) == {"carla"} and set(changed.groups["lab"].users) == {"anna", "carla"}
    assert changed.groups["lab"].users["anna"] == access.groups["lab"].users["anna"]
    assert changed.groups["lab"].shared
    other, _ = create_group(changed, GroupDescription(group="other", users=("anna",)))
    assert other.groups["lab"] == changed.groups["lab"]
    renewed, _ = add_user(other, "lab", "anna")
    assert renewed.groups["lab"].users["anna"] != other.groups["lab"].users["anna"]
    assert set(revoke_user(renewed, "lab", "anna").groups["lab"].users) == {"carla"}


def test_mistakes_are_named(tmp_path: Path) -> None:
    access, _ = create_group(AccessFile(), LAB)
    with pytest.raises(ValueError, match="no user 'zoe'"):
        revoke_user(access, "lab", "zoe")
    with pytest.raises(ValueError, match="no group 'nobody'"):
        add_user(access, "nobody", "zoe")
    with pytest.raises(ValueError, match="is refused"):
        add_user(access, "lab", "../zoe")
    path = tmp_path / "users.yaml"
    for wrong, named in (
        ({"group": "Lab A", "users": ["anna"]}, "group"),
        ({"group": "lab", "users": []}, "users"),
        ({"group": "lab", "users": ["anna"], "scopes": ["everything"]}, "scopes"),
        ({"group": "lab", "users": ["anna"], "quota": {"decodes_per_day": 0}}, "decodes_per_day"),
        ({"group": "lab", "users": ["anna"], "secret": "phk_pasted"}, "secret"),
    ):
        path.write_text(yaml.safe_dump(wrong))
        with pytest.raises(ValueError, match=named) as caught:
            read_description(path)
        assert "phk_pasted" not in str(caught.value)
    for not_yaml in ("{", "\x00", "a: !!int ''", "a: !!bool x", "a: !!timestamp x", "a: !!float ''", "[" * 3000):
        path.write_text(not_yaml)
        with pytest.raises(ValueError, match="not YAML"):
            read_description(path)
