"""The web page in headless Chromium: a file is dropped, pictures and confidence appear, refusals are shown."""

import base64
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fake_service import FakeBackend, fake_service, make_epochs

from encoders.epochs import SignalEpochs
from encoders.sensors import standard_layout
from serving.access_settings import AccessSettings
from serving.cluster import free_port
from serving.settings import ServingSettings
from serving.user_groups import AccessFile, GroupDescription, create_group, write_access_file

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here (apt-get install chromium chromium-driver)"
)


@dataclass
class Browser:
    """The few WebDriver commands that the tests need."""

    http: httpx.Client
    session: str

    def call(self, path: str, **values: Any) -> Any:
        response = self.http.post(f"/session/{self.session}/{path}", json=values)
        assert response.status_code == 200, response.text
        return response.json()["value"]

    def run(self, script: str) -> Any:
        return self.call("execute/sync", script=script, args=[])

    def open(self, url: str) -> None:
        self.call("url", url=url)

    def find(self, selector: str) -> str:
        element: dict[str, str] = self.call("element", using="css selector", value=selector)
        return next(iter(element.values()))

    def send_file(self, selector: str, path: Path) -> None:
        self.call(f"element/{self.find(selector)}/value", text=str(path))

    def click(self, selector: str) -> None:
        self.call(f"element/{self.find(selector)}/click")

    def text(self, selector: str) -> str:
        return str(self.run(f"return document.querySelector({selector!r}).innerText"))

    def wait(self, script: str, timeout_s: float = 30.0) -> None:
        try:
            wait_until(lambda: bool(self.run(f"return Boolean({script})")), script, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page says: {self.text('main')}") from None

    def screenshot(self, path: Path) -> None:
        response = self.http.get(f"/session/{self.session}/screenshot")
        path.write_bytes(base64.b64decode(response.json()["value"]))


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    port = free_port()
    assert CHROMIUM and DRIVER
    driver = subprocess.Popen([DRIVER, f"--port={port}", "--silent"], stdout=subprocess.DEVNULL)
    profile = tmp_path_factory.mktemp("profile")
    arguments = ["headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-proxy-server"]
    arguments += ["window-size=1100,1500", "no-first-run", f"user-data-dir={profile}"]
    options = {"binary": CHROMIUM, "args": [f"--{argument}" for argument in arguments]}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90.0, trust_env=False) as http:
            wait_until(lambda: answers(http), "chromedriver", 30.0)
            wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
            created = http.post("/session", json=wanted)
            assert created.status_code == 200, created.text
            session = created.json()["value"]["sessionId"]
            yield Browser(http, session)
            http.delete(f"/session/{session}")
    finally:
        driver.terminate()
        driver.wait(timeout=10.0)


def answers(http: httpx.Client) -> bool:
    try:
        return bool(http.get("/status").json()["value"]["ready"])
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "drop.npz"
    layout = standard_layout("things_eeg2_63")
    times = np.linspace(-0.2, 0.8, 101)
    wave = np.exp(-(((times - 0.17) / 0.05) ** 2)) * 8e-6
    gradient = -layout.positions[:, 1:2] / 0.1
    data = np.stack([gradient * wave * (1 + 0.2 * epoch) for epoch in range(3)]).astype(np.float32)
    data += np.random.default_rng(0).normal(scale=4e-7, size=data.shape).astype(np.float32)
    names = layout.ch_names
    stimulus = ("scene 1", "scene 2", "scene 3")
    SignalEpochs(data, 100.0, -0.2, names, layout.ch_types, layout.positions, stimulus=stimulus).save(path)
    return path


@pytest.fixture(scope="module")
def url(backend: FakeBackend, recording: Path) -> Iterator[str]:
    with fake_service(ServingSettings(bundle=Path("unused")), backend, recording) as address:
        yield address


def test_a_dropped_recording_becomes_pictures(browser: Browser, url: str, recording: Path, tmp_path: Path) -> None:
    browser.open(url)
    browser.wait("document.querySelectorAll('#subject option').length === 2")
    assert "not what a person saw" in browser.text("main")
    assert "Everything here is simulated." in browser.text("main")
    browser.send_file("#file", recording)
    browser.click("#go")
    browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
    browser.wait("[...document.querySelectorAll('#epochs img')].every((image) => image.naturalWidth > 0)")
    assert browser.run("return document.querySelectorAll('#epochs .near img').length") == 3
    words = browser.text("#epochs")
    assert "Confidence 0.20: no better than noise" in words and "clearly above noise" in words
    assert "a red star on grass" in words and "scene 2" in words
    assert browser.run("return document.querySelectorAll('#plots canvas').length") == 2
    colours = "new Set(this_canvas.getContext('2d').getImageData(0, 0, 200, 200).data).size"
    for index in range(2):
        drawn = colours.replace("this_canvas", f"document.querySelectorAll('#plots canvas')[{index}]")
        assert browser.run(f"return {drawn}") > 20, "a plot is empty"
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_the_page_loads_nothing_from_elsewhere(browser: Browser, url: str) -> None:
    loaded = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded and all(name.startswith((url, "data:", "blob:")) for name in loaded)


def test_progress_is_shown_and_can_be_cancelled(
    browser: Browser, url: str, backend: FakeBackend, recording: Path
) -> None:
    backend.step_s = 0.5
    started, finished = backend.n_started, backend.n_finished
    try:
        browser.open(url)
        browser.send_file("#file", recording)
        browser.click("#go")
        browser.wait("document.querySelector('#stage').innerText.includes('step 1 of 4')")
        assert 0.1 < browser.run("return document.querySelector('#bar').value") < 0.9
        browser.click("#cancel")
        browser.wait("document.querySelector('#problem').innerText.includes('Cancelled')")
        time.sleep(2.0)
    finally:
        backend.step_s = 0.0
    assert (backend.n_started - started, backend.n_finished - finished) == (1, 0)


def test_a_refusal_is_shown_in_its_own_words(browser: Browser, url: str, tmp_path: Path) -> None:
    path = tmp_path / "few.npz"
    make_epochs(ch_names=("Cz", "Pz")).save(path)
    browser.open(url)
    browser.send_file("#file", path)
    browser.click("#go")
    browser.wait("!document.querySelector('#problem').hidden")
    assert "lacks the channels" in browser.text("#problem")
    assert "epochs_mismatch" in browser.text("#problem")
    assert browser.run("return document.querySelector('#result').hidden")


def test_the_example_needs_one_click(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.click("#example")
    browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")


def test_a_key_typed_into_the_page_opens_a_guarded_service(
    browser: Browser, backend: FakeBackend, recording: Path, tmp_path: Path
) -> None:
    access, keys = create_group(AccessFile(), GroupDescription(group="lab", users=("anna",)))
    write_access_file(tmp_path / "access.yaml", access)
    settings = ServingSettings(bundle=Path("unused"), access=AccessSettings(file=str(tmp_path / "access.yaml")))

    def enter(key: str) -> None:
        browser.call(f"element/{browser.find('#key')}/value", text=f"{key}\n")

    with fake_service(settings, backend, recording) as url:
        browser.open(url)
        browser.wait("!document.querySelector('#door').hidden")
        assert "needs a key" in browser.text("#key-note")
        enter(keys["anna"][:-1] + ("a" if keys["anna"][-1] != "a" else "b"))
        browser.wait("document.querySelector('#key-note').innerText.includes('does not know')")
        enter(keys["anna"])
        browser.wait("document.querySelector('#key-note').innerText.includes('is good')")
        browser.send_file("#file", recording)
        browser.click("#go")
        browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
        kept = "return [localStorage.length, document.cookie, location.href, document.documentElement.outerHTML]"
        assert keys["anna"] not in str(browser.run(kept))
