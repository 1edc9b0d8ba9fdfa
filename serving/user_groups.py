"""Groups of users with scopes, quotas and hashed keys: the file that the service reads, and how it is changed.

``create_group`` makes a file agree with a description of a group: who is new gets a key, who is gone loses theirs,
and nothing else changes, so it can be run any number of times. Keys are given back once and never stored.
"""

import os
import stat
import tempfile
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.api_keys import new_key

Model = TypeVar("Model", bound=BaseModel)
Scope = Literal["decode", "embed", "stream", "metrics"]
# a group and a user fit the 64 characters that a stored owner has
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,29}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Quota(_Frozen):
    """How much one member of a group may use, and all together."""

    requests_per_minute: int = Field(600, ge=1, description="per member, of any kind")
    decodes_per_day: int = Field(5000, ge=1, description="recordings sent, per member")
    group_decodes_per_day: int = Field(50_000, ge=1, description="recordings sent, all members together")


class StoredKey(_Frozen):
    """What is kept of a key."""

    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Group(_Frozen):
    """Users who share scopes and quotas."""

    scopes: tuple[Scope, ...] = ("decode", "embed")
    shared: bool = Field(False, description="whether members see each other's jobs")
    quota: Quota = Quota()
    users: dict[Name, StoredKey] = {}


class AccessFile(_Frozen):
    """Everything the service knows about who may use it."""

    version: Literal[1] = 1
    groups: dict[Name, Group] = {}


class GroupDescription(_Frozen):
    """What an operator writes to create a group (``users.yaml``)."""

    group: Name
    users: tuple[Name, ...] = Field(min_length=1)
    scopes: tuple[Scope, ...] = ("decode", "embed")
    shared: bool = False
    quota: Quota = Quota()


def read_access_file(path: Path) -> AccessFile:
    """Read the file of groups.

    Raises
    ------
    ValueError
        If it is no such file.
    """
    return _checked(AccessFile, path)


def read_description(path: Path) -> GroupDescription:
    """Read the description of a group."""
    return _checked(GroupDescription, path)


def write_access_file(path: Path, access: AccessFile) -> None:
    """Write the file of groups; whoever reads it sees the old or the new one, whole.

    A new file is for its owner's eyes only. One that stands keeps its owner, group and mode: a service in a container
    reads it as another user than the one who makes keys.

    Raises
    ------
    OSError
        If it cannot be written, or not be given to its owner again; the old one stands.
    """
    text = yaml.safe_dump(access.model_dump(mode="json"), sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            if path.exists():
                old = path.stat()
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def create_group(access: AccessFile, wanted: GroupDescription) -> tuple[AccessFile, dict[str, str]]:
    """Make a group be as described.

    Returns
    -------
    access : AccessFile
    keys : dict of str to str
        Keys of the users that are new, to be shown once.
    """
    known = access.groups[wanted.group].users if wanted.group in access.groups else {}
    keys: dict[str, str] = {}
    users: dict[str, StoredKey] = {}
    for name in wanted.users:
        if name in known:
            users[name] = known[name]
        else:
            users[name], keys[name] = _issue()
    group = Group(scopes=wanted.scopes, shared=wanted.shared, quota=wanted.quota, users=users)
    return _with_group(access, wanted.group, group), keys


def add_user(access: AccessFile, group: str, user: str) -> tuple[AccessFile, str]:
    """Give a new user of a group a key, or one who has a key another one instead; return the key too."""
    stored, key = _issue()
    changed = _group(access, group).model_copy(update={"users": _group(access, group).users | {user: stored}})
    return _with_group(access, group, changed), key


def revoke_user(access: AccessFile, group: str, user: str) -> AccessFile:
    """Take a user's key away."""
    users = dict(_group(access, group).users)
    if user not in users:
        raise ValueError(f"group {group!r} has no user {user!r}, expected one of {sorted(users)}; see `users list`")
    del users[user]
    return _with_group(access, group, _group(access, group).model_copy(update={"users": users}))


def _issue() -> tuple[StoredKey, str]:
    key, key_id, digest = new_key()
    return StoredKey(id=key_id, sha256=digest), key


def _group(access: AccessFile, name: str) -> Group:
    if name not in access.groups:
        raise ValueError(f"there is no group {name!r}, expected one of {sorted(access.groups)}; create it first")
    return access.groups[name]


def _with_group(access: AccessFile, name: str, group: Group) -> AccessFile:
    # validated again, so that a bad name is refused here and not when the service reads the file
    try:
        return AccessFile.model_validate({"groups": {**access.model_dump()["groups"], name: group.model_dump()}})
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None


def _checked(model: type[Model], path: Path) -> Model:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError:
        raise
    except Exception:  # besides its own errors whatever int(), dates and a stack that is too deep raise in it
        raise ValueError(f"{path} is not YAML, expected a mapping as in the README; correct it") from None
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path} {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    # the offending values are left out: one could be a key that somebody pasted
    faults = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in error.errors())
    return f"is refused: {faults}; correct it"
