"""Requests are sent again when that helps, and not when it could do harm; the same in an event loop."""

import asyncio
import time
from email.utils import formatdate

import httpx
import pytest

from serving.retries import send_again, send_again_async

ANSWER = httpx.Response(200)
LATER = httpx.Response(503, headers={"Retry-After": "7"})
Outcome = httpx.Response | httpx.TransportError


in_loop = False


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "in a loop"])
def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "in_loop", request.param)


def run(*outcomes: Outcome, n_retries: int = 4, repeatable: bool = False) -> tuple[httpx.Response, list[float], int]:
    left = list(outcomes)
    pauses: list[float] = []

    def send() -> httpx.Response:
        outcome = left.pop(0)
        if isinstance(outcome, httpx.TransportError):
            raise outcome
        return outcome

    if not in_loop:
        response = send_again(send, n_retries=n_retries, repeatable=repeatable, sleep=pauses.append)
        return response, pauses, len(outcomes) - len(left)

    async def send_in_loop() -> httpx.Response:
        return send()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    response = asyncio.run(send_again_async(send_in_loop, n_retries=n_retries, repeatable=repeatable, sleep=sleep))
    return response, pauses, len(outcomes) - len(left)


def test_the_service_says_how_long_to_wait() -> None:
    response, pauses, n_sent = run(LATER, LATER, ANSWER)
    assert response is ANSWER and n_sent == 3
    assert all(7.0 <= pause <= 8.4 for pause in pauses)


@pytest.mark.parametrize(("seconds_away", "least"), [(20, 18.0), (-600, 0.5)])
def test_the_time_to_come_again_may_be_a_date(seconds_away: int, least: float) -> None:
    later = httpx.Response(429, headers={"Retry-After": formatdate(time.time() + seconds_away, usegmt=True)})
    response, (pause,), _ = run(later, ANSWER)
    assert response is ANSWER and least <= pause <= 25.0


@pytest.mark.parametrize("told", ["86400", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "-5", "soon", "\u00b2", ""])
def test_a_refusal_for_long_and_one_of_unknown_length_are_returned_at_once(told: str) -> None:
    later = httpx.Response(429, headers={"Retry-After": told.encode("latin-1")})
    assert run(later, ANSWER)[0] is later


@pytest.mark.parametrize("error", [httpx.LocalProtocolError("illegal header"), httpx.UnsupportedProtocol("no http://")])
def test_what_can_never_be_sent_is_not_tried_again(error: httpx.TransportError) -> None:
    with pytest.raises(type(error)):
        run(error, ANSWER, repeatable=True)


@pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
def test_what_does_not_pass_by_itself_is_not_sent_again(status: int) -> None:
    assert run(httpx.Response(status), ANSWER)[2] == 1


def test_the_last_refusal_is_returned_when_patience_ends() -> None:
    response, _, n_sent = run(*[LATER] * 3, ANSWER, n_retries=2)
    assert response is LATER and n_sent == 3


def test_a_lost_connection_is_tried_again_only_if_repeating_is_safe() -> None:
    with pytest.raises(httpx.ReadError):
        run(httpx.ReadError("cut"), ANSWER)
    response, pauses, _ = run(httpx.ReadError("cut"), httpx.ReadError("cut"), ANSWER, repeatable=True)
    assert response is ANSWER and pauses[0] < pauses[1]


@pytest.mark.parametrize("status", [404, 500, 502, 503])
def test_what_a_proxy_says_of_a_lost_service_is_tried_again_only_if_repeating_is_safe(status: int) -> None:
    proxy = httpx.Response(status, text="Internal Server Error")
    assert run(proxy, ANSWER)[0] is proxy
    response, pauses, _ = run(proxy, proxy, ANSWER, repeatable=True)
    assert response is ANSWER and pauses[0] < pauses[1]
    own = httpx.Response(status, headers={"content-type": "application/problem+json"})
    assert run(own, ANSWER, repeatable=True)[0] is own


def test_a_connection_that_was_never_made_is_always_safe_to_repeat() -> None:
    assert run(httpx.ConnectError("refused"), ANSWER)[0] is ANSWER
    with pytest.raises(httpx.ConnectError):
        run(*[httpx.ConnectError("refused")] * 3, n_retries=2)
