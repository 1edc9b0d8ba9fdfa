"""Sending a request again: after the seconds that the service names, or soon after a connection was lost."""

import random
import time
from collections.abc import Callable

import httpx

# Refusals that pass by themselves; the service sends Retry-After with them.
_PASSING = (429, 503)
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


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
        Whether it may be sent again when a connection was lost after the service had perhaps begun to work.
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
    for attempt in range(n_retries + 1):
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)
        try:
            response = send()
        except httpx.ConnectError:
            if attempt == n_retries:
                raise
        except httpx.TransportError:
            if attempt == n_retries or not repeatable:
                raise
        else:
            told = response.headers.get("retry-after", "")
            if response.status_code not in _PASSING or not told.isdigit() or attempt == n_retries:
                return response
            pause = max(pause, float(told))
        # a little chance, so that clients that were refused together do not come back together
        sleep(pause * random.uniform(1.0, 1.2))
    raise AssertionError("the last attempt returns or raises")
