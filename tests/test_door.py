"""The door: every route but health asks for a key, scopes and quotas hold, revoking works at once, all is on record."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_service import FakeBackend, fake_service, make_epochs

from serving import door
from serving.access import REALM
from serving.access_settings import AccessSettings
from serving.api_keys import new_key
from serving.audit import verify
from serving.backend import Pictures
from serving.client import PhospheneClient
from serving.routes import create_app
from serving.sandbox import Sandbox
from serving.settings import JobSettings, ServingSettings
from serving.user_groups import (
    AccessFile,
    GroupDescription,
    Quota,
    add_user,
    create_group,
    read_access_file,
    revoke_user,
    write_access_file,
)


class Guarded:
    """The interface behind a file of groups, called in this process."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.file = folder / "access.yaml"
        self.audit = folder / "audit.jsonl"
        access, self.keys = create_group(AccessFile(), GroupDescription(group="lab", users=("anna", "ben")))
        reader = GroupDescription(group="readers", users=("rita",), scopes=("metrics",))
        access, more = create_group(access, reader)
        hasty = GroupDescription(group="hasty", users=("hugo",), quota=Quota(requests_per_minute=5, decodes_per_day=2))
        access, most = create_group(access, hasty)
        self.keys |= more | most
        write_access_file(self.file, access)
        self.settings = ServingSettings(
            bundle=Path("unused"),
            access=AccessSettings(file=str(self.file), audit_file=str(self.audit), **settings),
        )
        self.backend = FakeBackend()
        self.sandbox = Sandbox(self.settings.parse, max_epochs=self.settings.max_epochs)
        self.app = create_app(self.settings, self.backend, self.sandbox)

    def client(self, user: str = "", **more: Any) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.keys[user]}"} if user else {}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, **more)
        return httpx.AsyncClient(transport=transport, base_url="http://10.1.2.3", headers=headers)

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


class HeldBackend(FakeBackend):
    """Makes no pictures until it may."""

    held = True

    async def generate(self, *arguments: Any, **options: Any) -> Pictures:
        while self.held:
            await asyncio.sleep(0.02)
        return await super().generate(*arguments, **options)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    service = Guarded(tmp_path)
    yield service
    service.sandbox.close()


@asynccontextmanager
async def reading(service: Guarded) -> AsyncIterator[None]:
    await service.sandbox.start()
    yield


ROUTES = [
    ("POST", "/v1/generations"), ("POST", "/v1/embeddings"), ("POST", "/v1/jobs"), ("GET", "/v1/jobs/1"),
    ("DELETE", "/v1/jobs/1"), ("DELETE", "/v1/me"), ("GET", "/v1/bundles"), ("GET", "/metrics"), ("GET", "/"),
    ("GET", "/example.npz"), ("GET", "/example/live.json"), ("GET", "/static/../routes.py"),
    ("GET", "/static/nothing.js"),
    ("GET", "/openapi.json"), ("GET", "/nothing"), ("OPTIONS", "/v1/jobs"), ("HEAD", "/"), ("GET", "//v1/bundles"),
    ("GET", "/healthz/"), ("GET", "/readyz/../metrics"), ("TRACE", "/v1/bundles"),
]  # fmt: skip


def test_every_route_but_health_needs_a_key(guarded: Guarded) -> None:
    async def run() -> None:
        unknown = {"Authorization": f"Bearer {new_key()[0]}"}
        async with guarded.client() as client:
            for route in ("/healthz", "/readyz", "/static/app.js", "/static/style.css"):
                assert (await client.get(route)).status_code == 200
            for method, route in ROUTES:
                for headers, code in (
                    ({}, "no_key"),
                    (unknown, "unknown_key"),
                    ({"Authorization": "Basic x"}, "no_key"),
                ):
                    response = await client.request(method, route, headers=headers)
                    assert response.status_code == 401, (method, route)
                    assert response.headers["www-authenticate"].startswith(REALM)
                    if method != "HEAD":
                        assert response.json()["code"] == code
                    assert response.headers["content-type"] == "application/problem+json"

    asyncio.run(run())


def test_the_application_has_no_route_that_the_list_forgets(guarded: Guarded) -> None:
    async def run() -> None:
        async with guarded.client("anna") as client, guarded.client() as stranger:
            described = (await client.get("/openapi.json")).json()["paths"]
            for path, operations in described.items():
                if path in door.OPEN:
                    continue
                for method in operations:
                    address = path.replace("{", "").replace("}", "")
                    assert (await stranger.request(method, address)).status_code == 401

    asyncio.run(run())


def test_ten_thousand_guessed_keys_open_nothing(guarded: Guarded) -> None:
    real = guarded.keys["anna"]

    async def run() -> set[int]:
        found = set()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            found.add(message.get("status", 401))

        for i in range(10_000):
            # half of them know the public part of a real key
            guess = new_key()[0] if i % 2 else real[:21] + new_key()[0][21:]
            scope = {"type": "http", "method": "GET", "path": "/v1/bundles", "query_string": b"", "root_path": ""}
            headers = [(b"authorization", f"Bearer {guess}".encode())]
            await guarded.app(scope | {"headers": headers}, receive, send)
        return found

    assert asyncio.run(run()) == {401}
    assert len(guarded.records()) == 1, "strangers fill the log"


def test_a_key_opens_what_its_group_may(guarded: Guarded) -> None:
    async def run() -> None:
        async with guarded.client("anna") as anna, guarded.client("rita") as rita:
            assert (await anna.get("/v1/bundles")).status_code == 200
            assert (await rita.get("/metrics")).status_code == 200
            for client, route in ((anna, "/metrics"), (rita, "/v1/generations"), (rita, "/v1/jobs/1")):
                response = await client.request("POST" if "gen" in route else "GET", route)
                assert (response.status_code, response.json()["code"]) == (403, "not_allowed")
                assert "insufficient_scope" in response.headers["www-authenticate"]
            assert (await anna.get("/v1/jobsx")).status_code == 404

    asyncio.run(run())


def test_a_used_up_quota_says_when_to_come_back(guarded: Guarded) -> None:
    async def run() -> None:
        async with guarded.client("hugo") as client:
            statuses = [(await client.post("/v1/generations")).status_code for _ in range(3)]
            assert statuses == [400, 400, 429]
            assert (await client.get("/v1/bundles")).status_code == 200
            assert (await client.get("/v1/bundles")).status_code == 200
            response = await client.get("/v1/bundles")
            assert (response.status_code, response.json()["code"]) == (429, "over_quota")
            assert 1 <= int(response.headers["retry-after"]) <= 60

    asyncio.run(run())
    assert ["hasty/hugo"] == [one["who"] for one in guarded.records() if one.get("refused") == "over_quota"]


def test_keys_come_and_go_while_the_service_runs(guarded: Guarded) -> None:
    async def run() -> None:
        async with guarded.client("anna") as anna, guarded.client("ben") as ben:
            assert (await anna.get("/v1/bundles")).status_code == 200
            write_access_file(guarded.file, revoke_user(read_access_file(guarded.file), "lab", "anna"))
            assert (await anna.get("/v1/bundles")).status_code == 401
            assert (await ben.get("/v1/bundles")).status_code == 200
            changed, key = add_user(read_access_file(guarded.file), "lab", "carla")
            write_access_file(guarded.file, changed)
            headers = {"Authorization": f"Bearer {key}"}
            assert (await ben.get("/v1/bundles", headers=headers)).status_code == 200

    asyncio.run(run())


def test_events_that_are_being_told_end_when_the_key_or_its_scope_is_taken_away(tmp_path: Path) -> None:
    access, keys = create_group(AccessFile(), GroupDescription(group="lab", users=("anna", "ben")))
    file = tmp_path / "access.yaml"
    write_access_file(file, access)
    without_anna = revoke_user(access, "lab", "anna")
    for_embedding, _ = create_group(access, GroupDescription(group="lab", users=("anna", "ben"), scopes=("embed",)))
    settings = ServingSettings(
        bundle=Path("unused"),
        jobs=JobSettings(folder=str(tmp_path / "jobs"), beat_s=0.1),
        access=AccessSettings(file=str(file)),
    )
    recording = {"file": make_epochs().to_bytes()}

    def told(http: httpx.Client, method: str, path: str, changed: AccessFile, **more: Any) -> list[tuple[str, Any]]:
        events, name = [], ""
        with http.stream(method, path, headers={"Accept": "text/event-stream"}, **more) as response:
            for line in response.iter_lines():
                kind, _, value = line.partition(": ")
                name = value if kind == "event" else name
                if kind == "data":
                    events.append((name, json.loads(value)))
                    write_access_file(file, changed)
                    backend.held = False
        write_access_file(file, access)
        backend.held = True
        return events

    def let_in(url: str, user: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {keys[user]}"}
        return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30.0)

    backend = HeldBackend()
    with fake_service(settings, backend) as url, let_in(url, "anna") as anna, let_in(url, "ben") as ben:
        path = f"/v1/jobs/{anna.post('/v1/jobs', files=recording).json()['id']}/events"
        for events, code in (
            (told(anna, "GET", path, without_anna), "unknown_key"),
            (told(ben, "POST", "/v1/generations", for_embedding, files=recording), "not_allowed"),
        ):
            assert len(events) > 1 and not {"result", "preview"} & set(dict(events))
            assert (events[-1][0], events[-1][1]["code"]) == ("problem", code)


@pytest.mark.parametrize("broken", [None, "groups: {lab: {users: 3}}", "\x00"])
def test_a_broken_file_lets_nobody_in_until_it_is_mended(guarded: Guarded, broken: str | None) -> None:
    good = guarded.file.read_text()

    async def run() -> None:
        async with guarded.client("anna") as client:
            assert (await client.get("/v1/bundles")).status_code == 200
            guarded.file.unlink() if broken is None else guarded.file.write_text(broken)
            response = await client.get("/v1/bundles")
            assert (response.status_code, response.json()["code"]) == (503, "access_broken")
            assert (await client.get("/healthz")).status_code == 200
            guarded.file.write_text(good)
            assert (await client.get("/v1/bundles")).status_code == 200

    asyncio.run(run())


def test_a_browser_without_a_key_gets_the_page_to_enter_one(guarded: Guarded) -> None:
    async def run() -> None:
        async with guarded.client() as client:
            response = await client.get("/", headers={"Accept": "text/html,*/*"})
            assert response.status_code == 401 and 'id="key"' in response.text
            assert response.headers["www-authenticate"].startswith("Bearer")
            policy = response.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy and "default-src 'self'" in policy and "unsafe" not in policy
            assert (await client.get("/v1/bundles", headers={"Accept": "text/html"})).headers["content-type"] == (
                "application/problem+json"
            )

    asyncio.run(run())


@pytest.mark.parametrize("protocol", [False, True])
def test_websockets_need_a_key_too(guarded: Guarded, protocol: bool) -> None:
    def connect(key: str, **server: Any) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        header = (b"sec-websocket-protocol", f"phosphene, key.{key}".encode())
        headers = [header if protocol else (b"authorization", f"Bearer {key}".encode())]
        scope = {"type": "websocket", "path": "/v1/stream", "headers": headers, "query_string": b"", "root_path": ""}

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(dict(message))

        asyncio.run(guarded.app(scope | server, receive, send))
        return sent

    start, body = connect("", extensions={"websocket.http.response": {}})
    assert start["type"] == "websocket.http.response.start" and start["status"] == 401
    assert dict(start["headers"])[b"www-authenticate"].startswith(REALM.encode())
    assert json.loads(body["body"])["code"] == "no_key"
    assert connect("")[0]["reason"] == "no_key"
    assert connect(new_key()[0])[0]["reason"] == "unknown_key"
    assert connect(guarded.keys["anna"])[0]["reason"] == "not_allowed"
    changed = create_group(
        read_access_file(guarded.file), GroupDescription(group="live", users=("lea",), scopes=("stream",))
    )
    write_access_file(guarded.file, changed[0])
    assert connect(changed[1]["lea"])[0]["type"] == "websocket.accept"


def test_what_was_done_is_on_record_without_the_data(guarded: Guarded) -> None:
    async def run() -> None:
        async with reading(guarded), guarded.client("anna") as client:
            files = {"file": ("patient-canary.npz", make_epochs().to_bytes())}
            fields = {"purpose": "research", "consent": "true"}
            assert (await client.post("/v1/generations", files=files, data=fields)).status_code == 200
            streamed = await client.post(
                "/v1/generations", files=files, data=fields, headers={"Accept": "text/event-stream"}
            )
            assert "event: result" in streamed.text
            assert (await client.post("/v1/embeddings", files=files, data={"purpose": "diagnosis"})).status_code == 422

    asyncio.run(run())
    first, stream, ended, refused = guarded.records()
    assert {"who": "lab/anna", "route": "/v1/generations", "status": 200, "method": "POST"}.items() <= first.items()
    assert {"purpose": "research", "consent": True}.items() <= first.items()
    assert stream["status"] == 200 and ended["outcome"] == "result"
    assert (refused["route"], refused["status"]) == ("/v1/embeddings", 422)
    assert "canary" not in guarded.audit.read_text() and guarded.keys["anna"] not in guarded.audit.read_text()
    assert verify(guarded.audit).fault == ""


def test_nothing_leaves_that_cannot_be_put_on_record(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    async def run() -> None:
        async with guarded.client("anna") as client:
            monkeypatch.setattr(door.AuditLog, "append", full)
            response = await client.get("/v1/bundles")
            assert (response.status_code, response.json()["code"]) == (503, "audit_failed")
            assert "retry-after" in response.headers and "fake-1" not in response.text

    asyncio.run(run())


def test_without_keys_only_this_machine_is_let_in() -> None:
    def status(client: str, host: str, **settings: Any) -> int:
        given = ServingSettings(bundle=Path("unused"), access=AccessSettings(**settings))
        sandbox = Sandbox(given.parse, max_epochs=1)
        app = create_app(given, FakeBackend(), sandbox)

        async def run() -> int:
            transport = httpx.ASGITransport(app, client=(client, 4711))
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as http:
                assert (await http.get("/healthz")).status_code == 200
                return (await http.get("/v1/bundles")).status_code

        try:
            return asyncio.run(run())
        finally:
            sandbox.close()

    assert (
        status("127.0.0.1", "localhost:8000") == status("::1", "[::1]:8000") == status("127.0.0.1", "127.0.0.1") == 200
    )
    assert status("10.1.2.3", "localhost:8000") == status("::ffff:10.1.2.3", "localhost") == 403
    assert status("127.0.0.1", "evil.example:8000") == status("127.0.0.1", "localhost.evil.example") == 403
    assert status("10.1.2.3", "service", allow_open_network=True) == 200


def test_without_keys_a_page_of_another_site_changes_nothing() -> None:
    given = ServingSettings(bundle=Path("unused"))
    sandbox = Sandbox(given.parse, max_epochs=1)
    app = create_app(given, FakeBackend(), sandbox)

    async def statuses(host: str, origin: str) -> set[int]:
        headers = {"Origin": origin} if origin else {}
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 4711))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers) as http:
            assert (await http.get("/v1/bundles")).status_code == 200
            changes = ["POST /v1/generations", "POST /v1/jobs", "DELETE /v1/jobs/1", "DELETE /v1/me"]
            return {(await http.request(*change.split())).status_code for change in changes}

    def run(host: str, origin: str) -> set[int]:
        return asyncio.run(statuses(host, origin))

    try:
        for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "localhost"):
            assert 403 not in run(host, "") | run(host, f"http://{host}") | run(host.upper(), f"http://{host}")
        for origin in ("https://evil.example", "null", "http://localhost:9000", "http://127.0.0.1:8000", "https://"):
            assert run("localhost:8000", origin) == {403}
    finally:
        sandbox.close()


def test_the_client_with_a_key_is_let_in_and_without_or_with_another_is_told(tmp_path: Path) -> None:
    access, keys = create_group(AccessFile(), GroupDescription(group="lab", users=("anna", "ben")))
    access, more = create_group(access, GroupDescription(group="readers", users=("rita",), scopes=("metrics",)))
    write_access_file(tmp_path / "access.yaml", access)
    settings = ServingSettings(
        bundle=Path("unused"),
        jobs=JobSettings(folder=str(tmp_path / "jobs"), beat_s=0.1),
        access=AccessSettings(file=str(tmp_path / "access.yaml")),
    )
    content = make_epochs().to_bytes()
    seen: list[object] = []
    with fake_service(settings, FakeBackend()) as url:
        with PhospheneClient(url, api_key=keys["anna"]) as client:
            assert client.bundles()[0].id == "fake-1" and len(client.embed(content).epochs) == 2
            assert client.generate(content, on_progress=seen.append) and seen
            job = client.submit(content)
            assert client.wait(job.id).status == "finished"
        for key, code in (("", "no_key"), (new_key()[0], "unknown_key"), (more["rita"], "not_allowed")):
            with PhospheneClient(url, api_key=key) as client:
                assert client.ready()
                for ask in (
                    lambda: client.generate(content),
                    lambda: client.submit(content),
                    lambda: client.job(job.id),
                ):
                    with pytest.raises(httpx.HTTPStatusError, match=code):
                        ask()
        with PhospheneClient(url, api_key=keys["ben"]) as client:
            with pytest.raises(httpx.HTTPStatusError, match="not_found"):
                client.job(job.id)
