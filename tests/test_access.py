"""Who is who, and whose things are whose: other people's ids answer as if there were nothing."""

import secrets
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException

from serving.access import NOBODY, Access, Caller, owned
from serving.access_settings import AccessSettings
from serving.problems import problem_of
from serving.user_groups import AccessFile, GroupDescription, create_group, write_access_file


def callers(folder: Path) -> dict[str, Caller]:
    access, keys = create_group(AccessFile(), GroupDescription(group="lab", users=("anna", "ben")))
    access, more = create_group(access, GroupDescription(group="team", users=("tara", "tom"), shared=True))
    write_access_file(folder / "access.yaml", access)
    door = Access(AccessSettings(file=str(folder / "access.yaml")))
    return {user: door.identify(f"Bearer {key}") for user, key in (keys | more).items()}


def test_members_of_a_group_share_only_if_it_says_so(tmp_path: Path) -> None:
    found = callers(tmp_path)
    assert found["anna"].owner != found["ben"].owner and found["tara"].owner == found["tom"].owner
    assert found["tara"].name == "team/tara" != found["tom"].name
    assert len({one.owner for one in found.values()} | {NOBODY.owner}) == 4
    assert max(len(one.owner) for one in found.values()) <= 64
    longest = GroupDescription(group="g" * 30, users=("u" * 30,))
    assert len(f"{longest.group}/{longest.users[0]}") <= 64


def test_ten_thousand_ids_of_others_or_of_nothing_read_nothing(tmp_path: Path) -> None:
    anna, ben = callers(tmp_path)["anna"], callers(tmp_path)["ben"]
    jobs = {secrets.token_hex(16): anna.owner for _ in range(5000)}
    guesses = [*jobs, *(secrets.token_hex(16) for _ in range(5000))]
    answers = set()
    for guess in guesses:
        with pytest.raises(HTTPException) as caught:
            owned(jobs.get(guess), lambda owner: owner, ben)
        answers.add((caught.value.status_code, problem_of(caught.value).model_dump_json()))
    assert len(answers) == 1 and answers.pop()[0] == 404
    assert all(owned(owner, lambda one: one, anna) == owner for owner in jobs.values())
    with pytest.raises(HTTPException):
        owned(anna.owner, lambda owner: owner, NOBODY)


def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No such file.*none\.yaml"):
        Access(AccessSettings(file=str(tmp_path / "none.yaml")))
    access, _ = create_group(AccessFile(), GroupDescription(group="lab", users=("anna",)))
    group = access.groups["lab"]
    twice = group.model_copy(update={"users": group.users | {"ben": group.users["anna"]}})
    write_access_file(tmp_path / "twice.yaml", AccessFile(groups={"lab": twice}))
    with pytest.raises(ValueError, match="stands twice"):
        Access(AccessSettings(file=str(tmp_path / "twice.yaml")))
