"""The dashboard and the alerts against the metrics that the service shows, both ways."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from fake_service import FakeBackend, fake_service, make_epochs
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import Metrics
from serving.problems import CODES
from serving.settings import ServingSettings

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "deploy/grafana/dashboard.json"
RULES = ROOT / "deploy/prometheus/rules.yaml"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def families() -> dict[str, str]:
    """Return the type of every metric that /metrics names, before anything happened."""
    shown = text_string_to_metric_families(Metrics().render().decode())
    return {family.name: family.type for family in shown if not family.name.endswith("_created")}


def series() -> dict[str, str]:
    return {name + suffix: name for name, kind in families().items() for suffix in SUFFIXES[kind]}


def dashboard_expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"].replace("$__rate_interval", "5m") for panel in panels for target in panel["targets"]]


def rule_expressions() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def selectors(expression: str) -> Iterator[Any]:
    """Yield every vector selector of a PromQL expression."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        for name in ("expr", "lhs", "rhs", "vector_selector", "args"):
            child = getattr(node, name, None)
            for one in child if isinstance(child, list | tuple) else [child]:
                if one is not None:
                    visit(one)

    visit(promql_parser.parse(expression))
    assert found, expression
    yield from found


EXPRESSIONS = [*dashboard_expressions(), *rule_expressions()]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_named_exists_with_those_labels(expression: str) -> None:
    assert len(re.findall(r"\b(?:phosphene_\w+|up)\b(?=[{)\[ ])", expression)) == len(list(selectors(expression)))
    for selector in selectors(expression):
        if selector.name == "up":
            continue
        assert selector.name in series(), selector.name
        allowed = labels_of(series()[selector.name])
        for matcher in selector.matchers.matchers:
            assert matcher.name in allowed | {"job", "instance"}, (selector.name, matcher.name)


def test_every_metric_is_on_the_dashboard() -> None:
    named = {series()[one.name] for text in dashboard_expressions() for one in selectors(text) if one.name != "up"}
    assert named == set(families())


def labels_of(family: str) -> set[str]:
    extra = {"le"} if families()[family] == "histogram" else set()
    return extra | set(getattr(Metrics(), family.removeprefix("phosphene_"))._labelnames)


def test_codes_stages_and_bounds_in_expressions_exist() -> None:
    shown = after_one_answer()
    stages = {
        sample.labels["stage"] for family in shown.values() for sample in family.samples if "stage" in sample.labels
    }
    for text in EXPRESSIONS:
        for selector in selectors(text):
            for matcher in selector.matchers.matchers:
                if matcher.name == "code":
                    assert set(matcher.value.split("|")) <= set(CODES), matcher.value
                if matcher.name == "stage":
                    assert matcher.value in stages
                if matcher.name == "le":
                    bounds = {sample.labels.get("le") for sample in shown[series()[selector.name]].samples}
                    assert matcher.value in bounds, (selector.name, matcher.value)


def after_one_answer() -> dict[str, Any]:
    with fake_service(ServingSettings(bundle=Path("unused")), FakeBackend()) as url:
        files = {"file": ("recording", make_epochs(3).to_bytes())}
        answer = httpx.post(f"{url}/v1/generations", files=files, data={"images": "2"}, timeout=60.0, trust_env=False)
        assert answer.status_code == 200, answer.text
        text = httpx.get(f"{url}/metrics", trust_env=False).text
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_what_a_request_leaves_in_the_metrics() -> None:
    shown = after_one_answer()

    def value(name: str, **labels: str) -> float:
        (found,) = [s.value for s in shown[series()[name]].samples if s.name == name and s.labels == labels]
        return float(found)

    assert value("phosphene_pictures_total") == 6
    assert value("phosphene_confidence_count") == 3
    assert value("phosphene_confidence_bucket", le="0.5") == 1
    assert value("phosphene_confidence_sum") == pytest.approx(0.2 + 0.5995 + 0.999)
    for stage in ("read", "embed", "generate", "encode"):
        assert value("phosphene_stage_seconds_count", stage=stage) == 1
        assert value("phosphene_stage_requests", stage=stage) == 0
    assert value("phosphene_queued_pictures") == 0


def test_grafanas_own_model_of_a_dashboard_knows_every_field() -> None:
    given = json.loads(DASHBOARD.read_text())
    lost = list(unknown(given, json.loads(JSONEncoder().encode(Dashboard.from_json(given))), "dashboard"))
    assert lost == []


def unknown(given: Any, known: Any, path: str) -> Iterator[str]:
    """Yield what a model dropped or changed."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(known, dict) or key not in known:
                yield f"{path}.{key}"
            else:
                yield from unknown(value, known[key], f"{path}.{key}")
    elif isinstance(given, list):
        if len(given) != len(known):
            yield path
        for index, (one, other) in enumerate(zip(given, known, strict=False)):
            yield from unknown(one, other, f"{path}[{index}]")
    elif given != known:
        yield path


def test_panels_have_room_and_names_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in panels
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def test_every_alert_says_what_and_what_to_do() -> None:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "description"}
    names = [rule["alert"] for rule in group["rules"]]
    cases = (ROOT / "tests/alert_cases.yaml").read_text()
    assert all(f'alertname="{name}"' in cases for name in names), "each alert has a case in which it fires"


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "deploy/prometheus/rules.yaml"),
        ("check", "config", "deploy/prometheus/prometheus.yaml"),
        ("test", "rules", "tests/alert_cases.yaml"),
    ],
    ids=" ".join,
)
def test_prometheus_accepts_the_rules_and_they_fire(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([promtool, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
