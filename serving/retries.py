"""Sending a request again: after the seconds that the service names, or soon after a connection was lost."""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime

import httpx

# Refusals that pass by themselves; the service sends Retry-After with them.
_PASSING = (429, 503)
# What a proxy in front of the service says while it is away; the service itself answers in problem+json.
_AWAY = (404, 500, 502, 503, 504)
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# Who is told to wait for longer has used up a day's quota rather than met a busy minute, and would seem to hang.
_LONGEST_TOLD_S = 120.0
# Requests that never left, and never will.
_UNSENDABLE = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)

Outcome = httpx.Response | httpx.TransportError


def send_again(
    send: Callable[[], httpx.Response], *, n_retries: int, repeatable: bool, sleep: Callable[[float], None] = time.sleep
) -> httpx.Response:
    """Send until an answer is final.

    Parameters
    ----------
    send : callable
        Sends the request once.
    n_retries : int
        How often it is sent again at most.
    repeatable : bool
        Whether it may be sent again when the service was lost after it had perhaps begun to work: the connection was
        cut, or somebody else answered in its place.
    sleep : callable
        Waits so many seconds.

    Returns
    -------
    httpx.Response
        The last answer, whatever its status.

    Raises
    ------
    httpx.TransportError
        If there was none.
    """
    for attempt in itertools.count():
        outcome: Outcome
        try:
            outcome = send()
        except httpx.TransportError as error:
            outcome = error
        pause = _pause_after(outcome, attempt, n_retries=n_retries, repeatable=repeatable)
        if pause is None:
            return _final(outcome)
        if isinstance(outcome, httpx.Response):
            outcome.close()
        sleep(pause)
    raise AssertionError("the last attempt returns or raises")


async def send_again_async(
    send: Callable[[], Awaitable[httpx.Response]],
    *,
    n_retries: int,
    repeatable: bool,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> httpx.Response:
    """Do what `send_again` does, in an event loop."""
    for attempt in itertools.count():
        outcome: Outcome
        try:
            outcome = await send()
        except httpx.TransportError as error:
            outcome = error
        pause = _pause_after(outcome, attempt, n_retries=n_retries, repeatable=repeatable)
        if pause is None:
            return _final(outcome)
        if isinstance(outcome, httpx.Response):
            await outcome.aclose()
        await sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _pause_after(outcome: Outcome, attempt: int, *, n_retries: int, repeatable: bool) -> float | None:
    """Return how many seconds to wait before the next attempt; None if this outcome is final."""
    pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**attempt)
    if attempt >= n_retries:
        return None
    if isinstance(outcome, httpx.Response):
        told = _told_s(outcome) if outcome.status_code in _PASSING else None
        if told is not None:
            if told > _LONGEST_TOLD_S:
                return None
            pause = max(pause, told)
        elif not repeatable or not _is_away(outcome):
            return None
    elif isinstance(outcome, _UNSENDABLE) or not (repeatable or isinstance(outcome, httpx.ConnectError)):
        return None
    # a little chance, so that clients that were refused together do not come back together
    return pause * random.uniform(1.0, 1.2)


def _told_s(response: httpx.Response) -> float | None:
    """Return how many seconds to wait an answer asks for, by number or date (RFC 9110); None if it does not say."""
    told: str = response.headers.get("retry-after", "")
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except ValueError:
        return None


def _is_away(response: httpx.Response) -> bool:
    return response.status_code in _AWAY and "problem+json" not in response.headers.get("content-type", "")


def _final(outcome: Outcome) -> httpx.Response:
    if isinstance(outcome, httpx.TransportError):
        raise outcome
    return outcome
