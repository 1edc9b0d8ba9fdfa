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
from serving.settings import JobSettings, ServingSettings
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

    def press(self, *keys: str) -> None:
        """Press keys one after the other, on whatever has the focus."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("actions", actions=[{"type": "key", "id": "keys", "actions": strokes}])

    def focused(self) -> str:
        return str(self.run("return document.activeElement.id || document.activeElement.className"))

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
def job_url(backend: FakeBackend, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that keeps jobs."""
    jobs = JobSettings(folder=str(tmp_path_factory.mktemp("jobs")), beat_s=0.1)
    settings = ServingSettings(bundle=Path("unused"), jobs=jobs)
    with fake_service(settings, backend, recording) as address:
        yield address


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


def test_jobs_show_previews_and_stay_in_the_history_until_they_are_deleted(
    browser: Browser, job_url: str, backend: FakeBackend, recording: Path
) -> None:
    backend.step_s = 0.5
    try:
        browser.open(job_url)
        browser.send_file("#file", recording)
        browser.click("#go")
        browser.wait("!document.querySelector('#making').hidden && document.querySelector('#preview').naturalWidth")
        assert "not finished" in browser.text("#making-words")
        browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
    finally:
        backend.step_s = 0.0
    assert browser.run("return document.querySelector('#making').hidden")
    assert "3 epochs, highest confidence 1.00" in browser.text("#jobs")
    browser.open(job_url)
    browser.wait("document.querySelectorAll('#jobs li').length === 1")
    browser.click("#jobs button.plain")
    browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
    (job,) = browser.run("return JSON.parse(localStorage.getItem('jobs'))")
    assert set(job) == {"id", "created", "words"}, "nothing else of a recording is kept in the browser"
    with httpx.Client(base_url=job_url, trust_env=False) as http:
        assert http.get(f"/v1/jobs/{job['id']}").status_code == 200
        browser.click("#jobs button.danger")
        browser.wait("document.querySelector('#history').hidden")
        assert http.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert browser.run("return localStorage.getItem('jobs')") == "[]"


def test_jobs_of_another_key_are_not_forgotten(
    browser: Browser, backend: FakeBackend, recording: Path, tmp_path: Path
) -> None:
    access, keys = create_group(AccessFile(), GroupDescription(group="lab", users=("anna", "ben")))
    write_access_file(tmp_path / "access.yaml", access)
    settings = ServingSettings(
        bundle=Path("unused"),
        access=AccessSettings(file=str(tmp_path / "access.yaml")),
        jobs=JobSettings(folder=str(tmp_path / "jobs"), beat_s=0.1),
    )
    with fake_service(settings, backend, recording) as url:

        def open_as(user: str) -> None:
            browser.run(f"sessionStorage.setItem('key', '{keys[user]}')")
            browser.open(url)
            browser.wait("document.querySelector('#key-note').innerText.includes('is good')")

        browser.open(url)
        open_as("anna")
        browser.send_file("#file", recording)
        browser.click("#go")
        browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
        assert not any(key in str(browser.run("return localStorage.getItem('jobs')")) for key in keys.values())
        open_as("ben")
        for button in ("plain", "danger"):
            browser.run("document.querySelector('#problem').hidden = true")
            browser.click(f"#jobs button.{button}")
            browser.wait("!document.querySelector('#problem').hidden")
            assert "with another key" in browser.text("#problem")
        open_as("anna")
        browser.click("#jobs button.plain")
        browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
        browser.click("#jobs button.danger")
        browser.wait("document.querySelector('#history').hidden")


def test_cancelling_a_job_erases_it(browser: Browser, job_url: str, backend: FakeBackend, recording: Path) -> None:
    backend.step_s = 0.5
    finished = backend.n_finished
    try:
        browser.open(job_url)
        browser.send_file("#file", recording)
        browser.click("#go")
        browser.wait("document.querySelector('#stage').innerText.includes('step 1 of 4')")
        (job,) = browser.run("return JSON.parse(localStorage.getItem('jobs'))")
        browser.click("#cancel")
        browser.wait("localStorage.getItem('jobs') === '[]'")
        with httpx.Client(base_url=job_url, trust_env=False) as http:
            assert http.get(f"/v1/jobs/{job['id']}").status_code == 404
        time.sleep(2.0)
    finally:
        backend.step_s = 0.0
    assert backend.n_finished == finished and "Cancelled" in browser.text("#problem")


def test_the_live_view_decodes_while_the_recording_runs(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.click("#live-go")
    browser.wait("document.querySelectorAll('#live-epochs .pictures img').length >= 1")
    assert browser.run("return document.querySelector('#live-go').disabled"), "it is still running"
    drawn = "document.querySelector('#strip').getContext('2d').getImageData(0, 0, 900, 200).data"
    assert browser.run(f"return new Set({drawn}).size") > 20
    browser.wait("document.querySelector('#live-words').innerText.startsWith('ended: 9 stimuli, 9 decoded')", 40.0)
    assert "no better than noise" in browser.text("#live-epochs") and "scene 2" in browser.text("#live-epochs")
    assert browser.run("return document.querySelector('#problem').hidden")
    browser.click("#live-go")
    browser.wait("document.querySelector('#live-words').innerText.includes(' s sent')")
    browser.click("#live-stop")
    browser.wait("document.querySelector('#live-words').innerText === 'stopped'")
    assert browser.run("return document.querySelector('#problem').hidden")


def test_the_live_view_averages_repetitions_when_asked_to(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.click("#average")
    browser.click("#live-go")
    browser.wait("document.querySelector('#live-words').innerText.startsWith('ended: 9 stimuli, 9 decoded')", 40.0)
    said = browser.text("#live-epochs")
    assert "mean of 2 presentations" in said and "mean of 3 presentations" in said
    assert browser.run("return document.querySelector('#problem').hidden")


TAB, ENTER, SPACE, LEFT = "\ue004", "\ue007", " ", "\ue012"


def test_everything_can_be_done_with_keys(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.wait("document.querySelectorAll('#subject option').length === 2")
    order = []
    for _ in range(11):
        browser.press(TAB)
        order.append(browser.focused())
        ring = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none", f"{order[-1]} does not show its focus"
    expected = ["skip", "drop", "images", "seed", "subject", "purpose", "onsets", "average", "consent", "example"]
    assert order == [*expected, "live-go"]
    browser.run("document.querySelector('#consent').focus()")
    browser.press(SPACE, TAB)
    assert browser.run("return document.querySelector('#consent').checked") and browser.focused() == "example"
    browser.press(ENTER)
    browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
    assert browser.focused() == "decoded", "the result takes the focus"
    browser.run("document.querySelector('#plots input[type=range]').focus()")
    before = browser.run("return document.querySelector('#plots canvas + figcaption, #plots output').innerText")
    label = "return document.querySelectorAll('#plots canvas')[1].getAttribute('aria-label')"
    told = browser.run(label)
    browser.press(LEFT, LEFT, LEFT)
    assert before and browser.run(label) != told and "highest" in told and "uV" in told


def test_what_is_seen_has_a_name_that_can_be_heard(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.click("#example")
    browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
    script = """
      const named = (node) => node.alt || node.getAttribute('aria-label') || node.getAttribute('aria-labelledby') ||
        node.innerText || (node.labels && node.labels.length);
      return [...document.querySelectorAll('img, canvas, button, input:not([hidden]), select, progress, [role=button]')]
        .filter((node) => !named(node) && node.offsetParent).map((node) => node.outerHTML.slice(0, 80));"""
    assert browser.run(script) == []
    assert browser.run("return document.documentElement.lang") == "en"
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    browser.call("window/rect", width=390, height=900)
    try:
        assert browser.run(wide) <= 0, "a narrow window needs no scrolling to the side"
    finally:
        browser.call("window/rect", width=1100, height=1500)


def test_colours_can_be_told_apart(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.click("#example")
    browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
    script = """
      const channels = (text) => text.match(/[\\d.]+/g).map(Number);
      const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const light = (rgb) => rgb.slice(0, 3).map((v) => linear(v / 255))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = (node) => { for (; node; node = node.parentElement) {
        const c = channels(getComputedStyle(node).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c;
      } return [255, 255, 255]; };
      return [...document.querySelectorAll('p, label, strong, h1, h2, button:not(:disabled), figcaption, span, li')]
        .filter((node) => node.offsetParent && node.innerText.trim()).map((node) => {
          const [a, b] = [light(channels(getComputedStyle(node).color)), light(ground(node))];
          return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 70)]; })
        .filter(([contrast]) => contrast < 4.5);"""
    assert browser.run(script) == []


def test_a_key_is_entered_once_and_serves_the_live_view_too(
    browser: Browser, backend: FakeBackend, recording: Path, tmp_path: Path
) -> None:
    groups, keys = create_group(
        AccessFile(), GroupDescription(group="lab", users=("anna",), scopes=("decode", "stream"))
    )
    write_access_file(tmp_path / "access.yaml", groups)
    access = AccessSettings(file=str(tmp_path / "access.yaml"))
    with fake_service(ServingSettings(bundle=Path("unused"), access=access), backend, recording) as address:
        browser.open(address)
        browser.wait("!document.querySelector('#door').hidden")
        assert "needs a key" in browser.text("#key-note")
        browser.run("document.querySelector('#key').focus()")
        browser.press(*"phk_no", ENTER)
        browser.wait("document.querySelector('#key-note').innerText.includes('does not know')")
        browser.run("document.querySelector('#key').focus()")
        browser.press(*keys["anna"], ENTER)
        browser.wait("document.querySelector('#key-note').innerText.includes('is good')")
        assert browser.run("return document.querySelector('#key').value + document.cookie") == ""
        browser.click("#example")
        browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
        browser.click("#live-go")
        browser.wait("document.querySelectorAll('#live-epochs .pictures img').length >= 1")
        browser.click("#live-stop")
        browser.run("sessionStorage.clear()")


def test_a_service_that_is_away_is_said_to_be(browser: Browser, backend: FakeBackend, recording: Path) -> None:
    with fake_service(ServingSettings(bundle=Path("unused")), backend, recording) as address:
        browser.open(address)
        browser.wait("document.querySelectorAll('#subject option').length === 2")
    for button in ("#example", "#live-go"):
        browser.run("document.querySelector('#problem').hidden = true")
        browser.click(button)
        browser.wait("!document.querySelector('#problem').hidden")
        assert "The service was not reached" in browser.text("#problem")
        assert browser.run(f"return !document.querySelector('{button}').disabled"), "it can be tried again"


def test_one_recording_at_a_time_and_keys_stay_where_they_were(
    browser: Browser, url: str, backend: FakeBackend, recording: Path
) -> None:
    browser.open(url)
    paths = "\n".join([str(recording)] * 3)
    browser.call(f"element/{browser.find('#file')}/value", text=paths)
    assert "1 more left out" in browser.text("#chosen")
    backend.step_s = 0.5
    try:
        browser.run("document.querySelector('#example').focus()")
        browser.press(ENTER)
        browser.wait("document.querySelector('#stage').innerText.includes('step 1 of 4')")
        busy = "return ['#go', '#example'].map((name) => document.querySelector(name).disabled)"
        assert browser.run(busy) == [True, True]
        browser.send_file("#file", recording)
        assert browser.run(busy) == [True, True], "choosing another file starts nothing beside it"
        browser.run("document.querySelector('#cancel').focus()")
        browser.press(ENTER)
        browser.wait("document.querySelector('#problem').innerText.includes('Cancelled')")
    finally:
        backend.step_s = 0.0
    assert browser.run(busy) == [False, False] and browser.focused() == "example"


def test_a_job_is_followed_over_a_lost_connection_and_a_reload(
    browser: Browser, job_url: str, backend: FakeBackend, recording: Path
) -> None:
    backend.step_s = 1.0
    try:
        browser.open(job_url)
        browser.run("localStorage.clear()")
        browser.run(
            "const ask = window.fetch; let n = 0; window.fetch = (address, options) => "
            "String(address).endsWith('/events') && n++ < 2 "
            "? Promise.reject(new TypeError('Failed to fetch')) : ask(address, options);"
        )
        browser.send_file("#file", recording)
        browser.click("#go")
        browser.wait("document.querySelector('#stage').innerText.includes('connection was lost; the job is kept')")
        browser.wait("document.querySelector('#stage').innerText.includes('of 4')")
        assert browser.run("return document.querySelector('#problem').hidden")
        browser.open(job_url)
        browser.wait("document.querySelector('#jobs').innerText.includes('not finished')")
        browser.click("#jobs button.plain")
        browser.wait("!document.querySelector('#work').hidden")
        browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
    finally:
        backend.step_s = 0.0
    assert "3 epochs, highest confidence 1.00" in browser.text("#jobs")


def test_a_bundle_and_the_operators_purposes_can_be_chosen(browser: Browser, recording: Path, tmp_path: Path) -> None:
    ids = ("1" * 40, "2" * 40)
    access = AccessSettings(purposes=("sleep-study", "teaching"), require_purpose=True, require_consent=True)
    settings = ServingSettings(bundle=Path("unused"), access=access)
    with fake_service(settings, FakeBackend(bundle_ids=ids), recording) as address:
        browser.open(address)
        browser.wait("document.querySelectorAll('#bundle option').length === 2")
        options = "return [...document.querySelectorAll('#purpose option')].map((option) => option.textContent)"
        assert browser.run(options) == ["choose one", "sleep-study", "teaching"]
        browser.click("#example")
        browser.wait("!document.querySelector('#problem').hidden")
        assert "expected one of ['sleep-study', 'teaching']" in browser.text("#problem")
        for select, chosen in (("bundle", ids[1]), ("purpose", "sleep-study")):
            browser.run(
                f"const select = document.querySelector('#{select}'); select.value = '{chosen}';"
                "select.dispatchEvent(new Event('change'))"
            )
        assert "Bundle 222222222222." in browser.text("#about")
        browser.click("#consent")
        browser.click("#example")
        browser.wait("document.querySelectorAll('#epochs .pictures img').length === 3")
        assert f"bundle {ids[1]}" in browser.text("#provenance")
        browser.screenshot(tmp_path / "bundles.png")
        browser.click("#live-go")
        browser.wait("document.querySelectorAll('#live-epochs .pictures img').length >= 1")
        browser.click("#live-stop")
