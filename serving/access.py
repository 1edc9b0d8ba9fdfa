"""Who is asking, and may they: keys, scopes, quotas, and whose things are whose.

The file of groups is looked at with every request and read again when it has changed, so that a key that was taken
away stops working at once. If it cannot be read any more, nobody gets in until it can.
"""

import logging
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from starlette.requests import HTTPConnection

from serving.access_settings import AccessSettings
from serving.api_keys import key_fits, split_key
from serving.problems import refusal
from serving.quota import DAY_S, MINUTE_S, QuotaCounter
from serving.user_groups import Group, StoredKey, read_access_file

logger = logging.getLogger(__name__)
Value = TypeVar("Value")

REALM = 'Bearer realm="phosphene"'
# What a key must be allowed to do, by the beginning of the address; other addresses ask for a key only.
SCOPES = {
    "/v1/generations": "decode",
    "/v1/jobs": "decode",
    "/v1/embeddings": "embed",
    "/v1/stream": "stream",
    "/metrics": "metrics",
}
# Stands for the method of a WebSocket, which has none.
WEBSOCKET = "WEBSOCKET"


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes
    ----------
    owner : str
        Whom things that the request makes belong to, at most 64 characters: a user, or a group whose members share.
        Empty where no keys are asked for.
    name : str
        ``group/user``, for the audit log.
    key_id : str
        The public part of the key.
    """

    owner: str = ""
    name: str = ""
    key_id: str = ""


NOBODY = Caller()


@dataclass(frozen=True)
class _Entry:
    group_name: str
    user: str
    group: Group
    key: StoredKey


class Access:
    """Check keys against the file of groups, and count what is used.

    Parameters
    ----------
    settings : AccessSettings
        With a file.

    Raises
    ------
    ValueError
        If the file cannot be used.
    """

    def __init__(self, settings: AccessSettings) -> None:
        self._path = Path(settings.file)
        self._quota = QuotaCounter(settings.quota_file)
        self._seen: tuple[int, ...] | None = None
        self._entries: dict[str, _Entry] | None = None
        try:
            self._read()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"access.file cannot be used by user {os.getuid()}: {error}; `phosphene users create-group` makes it"
            ) from None

    def identify(self, authorization: str) -> Caller:
        """Find out whose key a request carries.

        Parameters
        ----------
        authorization : str
            The header, empty if there is none.

        Raises
        ------
        HTTPException
            401 without a good key, 503 while the file cannot be read.
        """
        self._reload()
        if self._entries is None:
            raise refusal("access_broken", "the list of users cannot be read; ask the operator", retry_after_s=30)
        entry = self._entry(authorization)
        name = f"{entry.group_name}/{entry.user}"
        return Caller(f"{entry.group_name}/" if entry.group.shared else name, name, entry.key.id)

    def allow(self, caller: Caller, method: str, path: str) -> None:
        """Let a caller do something, and count it.

        Parameters
        ----------
        caller : Caller
            Just identified.
        method, path : str
            Of the request, or `WEBSOCKET`; the path without a prefix that the application is mounted under.

        Raises
        ------
        HTTPException
            403 if the key is not for this, 429 with Retry-After over a quota.
        """
        entry = self._check_scope(caller, path)
        # a stream counts like one uploaded recording: both hold so many epochs at most
        self._spend(entry, caller.name, sends=method in ("POST", WEBSOCKET) and path.startswith("/v1/"))

    def check(self, authorization: str, path: str) -> None:
        """Ask again, for what lasts, whether a key still opens an address; nothing is counted.

        Raises
        ------
        HTTPException
            As `identify` does, and 403 if the key is not for this any more.
        """
        self._check_scope(self.identify(authorization), path)

    def close(self) -> None:
        """Close the counts."""
        self._quota.close()

    def _check_scope(self, caller: Caller, path: str) -> _Entry:
        assert self._entries is not None
        entry = self._entries[caller.key_id]
        scope = next((SCOPES[prefix] for prefix in SCOPES if path == prefix or path.startswith(f"{prefix}/")), None)
        if scope is not None and scope not in entry.group.scopes:
            raise refusal(
                "not_allowed",
                f"this key is for {list(entry.group.scopes)}, and this address needs {scope!r}; ask the operator",
                headers={"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{scope}"'},
            )
        return entry

    def _entry(self, authorization: str) -> _Entry:
        assert self._entries is not None
        kind, _, key = authorization.partition(" ")
        if not key.strip() or kind.lower() != "bearer":
            raise refusal(
                "no_key",
                "this service needs a key; send the header 'Authorization: Bearer phk_...'",
                headers={"WWW-Authenticate": REALM},
            )
        parts = split_key(key.strip())
        if parts is not None:
            entry = self._entries.get(parts[0])
            if key_fits(*parts, entry.key.sha256 if entry else None) and entry is not None:
                return entry
        raise refusal(
            "unknown_key",
            "the key is not known, or was taken away; ask the operator for a new one",
            headers={"WWW-Authenticate": f'{REALM}, error="invalid_token"'},
        )

    def _spend(self, entry: _Entry, name: str, *, sends: bool) -> None:
        quota = entry.group.quota
        limits = [(name, MINUTE_S, quota.requests_per_minute, "requests per minute")]
        if sends:
            limits.append((name, DAY_S, quota.decodes_per_day, "recordings per day"))
            limits.append((entry.group_name, DAY_S, quota.group_decodes_per_day, "recordings per day of the group"))
        for who, window_s, limit, words in limits:
            try:
                wait_s = self._quota.spend(who, window_s, limit)
            except sqlite3.Error as error:
                logger.error("quotas cannot be counted: %s", type(error).__name__)
                raise refusal("access_broken", "quotas cannot be counted; ask the operator", retry_after_s=30) from None
            if wait_s:
                raise refusal(
                    "over_quota",
                    f"the quota of {limit} {words} is used up; try again after the seconds in Retry-After",
                    retry_after_s=wait_s,
                )

    def _reload(self) -> None:
        try:
            self._read()
        except (OSError, ValueError) as error:
            if self._entries is not None:
                logger.error("the access file cannot be read (%s); nobody is let in", type(error).__name__)
            self._entries, self._seen = None, None

    def _read(self) -> None:
        """Read the file again if it is another one than last time."""
        stat = os.stat(self._path)
        seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if seen != self._seen:
            self._entries = _entries(self._path)
            self._seen = seen


def _entries(path: Path) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for group_name, group in read_access_file(path).groups.items():
        for user, key in group.users.items():
            if key.id in entries:
                raise ValueError(f"key {key.id} stands twice in {path}; revoke one of them")
            entries[key.id] = _Entry(group_name, user, group, key)
    return entries


def caller_of(connection: HTTPConnection) -> Caller:
    """Tell who sent a request that came through `serving.door.Door`; `owner` is what to store with what it makes."""
    caller = connection.state.caller
    assert isinstance(caller, Caller)
    return caller


def owned(item: Value | None, owner_of: Callable[[Value], str], caller: Caller) -> Value:
    """Return a stored item if it is the caller's.

    Somebody else's is answered exactly like one that does not exist, so that ids cannot be found out by asking.

    Raises
    ------
    HTTPException
        404 if there is none, or it is not the caller's.
    """
    if item is None or owner_of(item) != caller.owner:
        raise refusal("not_found", "nothing of yours is at this address; check the id")
    return item
