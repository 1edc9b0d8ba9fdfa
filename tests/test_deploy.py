"""What deploy/ promises, as far as it can be checked without a cluster, a GPU or a container engine."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from compose_spec import PyOptions
from ray.serve.schema import ServeDeploySchema

from serving.settings import ServingSettings

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
ROOT = DEPLOY.parent
ACCELERATE = sorted((DEPLOY / "accelerate").glob("*.yaml"))


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield every pod specification of the RayService with its only container."""
    cluster = documents("rayservice.yaml")[0]["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert len(pod["containers"]) == 1
        yield pod, pod["containers"][0]


def serve_configs() -> dict[str, dict[str, Any]]:
    service = yaml.safe_load(documents("rayservice.yaml")[0]["spec"]["serveConfigV2"])
    return {"serve.yaml": documents("serve.yaml")[0], "rayservice.yaml": service}


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("name", ["serve.yaml", "rayservice.yaml"])
def test_serve_config_is_one_that_ray_and_the_application_accept(name: str) -> None:
    config = ServeDeploySchema.model_validate(serve_configs()[name])
    (application,) = config.applications
    assert application.import_path == "serving.app:build"
    settings = ServingSettings.model_validate(application.args)
    http = config.http_options
    assert http.request_timeout_s is not None
    assert http.request_timeout_s > settings.request_timeout_s, "the service's own, better worded time-out comes first"


def test_serve_config_listens_on_loopback_and_names_the_shipped_bundle() -> None:
    config = serve_configs()["serve.yaml"]
    assert config["http_options"]["host"] == "127.0.0.1"
    assert "grpc_options" not in config
    assert config["applications"][0]["args"]["bundle"] == "generation/demo_bundle"


def test_versions_agree(project_root: Path) -> None:
    pins = dict(
        line.split("==") for line in (project_root / "constraints.txt").read_text().splitlines() if "==" in line
    )
    cluster = documents("rayservice.yaml")[0]["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == pins["ray"]
    version = re.search(r'^version = "(.+)"', (project_root / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    tags = {container["image"].split(":")[1] for _, container in containers()}
    tags |= {service["image"].split(":")[1] for service in documents("compose.yaml")[0]["services"].values()}
    assert {tag.rsplit("-", 1)[0] for tag in tags} == {version[1]}


def test_ray_cluster_keeps_the_dashboard_to_itself_and_asks_for_the_token() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = documents("ray-cluster.yaml")[0]
    validate_config(prepare_config(config))
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = config[key][-1]
        assert "RAY_AUTH_MODE=token" in start
        assert "0.0.0.0" not in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_compose_file_follows_the_specification() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    options = PyOptions()
    options.apply_merge = True
    options.from_yaml(text).validate()
    with pytest.raises(ValueError, match="read_onyl"):
        options.from_yaml(text.replace("read_only", "read_onyl"))


def test_compose_publishes_on_loopback_only_and_drops_privileges() -> None:
    for service in documents("compose.yaml")[0]["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()


def dockerfile() -> list[tuple[str, str]]:
    """Split the Dockerfile into (instruction, rest), continued lines joined."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1]) for line in lines]


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path: Path) -> None:
    def lint(path: Path) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("hadolint")), "--no-color", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = lint(DEPLOY / "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nUSER root\n")
    assert lint(bad).returncode == 1


def test_dockerfile_copies_what_the_wheel_is_made_of_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    sources = [
        source
        for instruction, rest in dockerfile()
        if instruction == "COPY" and "--from=" not in rest
        for source in rest.split()[:-1]
    ]
    needed = {"constraints.txt", "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert set(sources) == {*needed, *packages, "generation/demo_bundle"}
    assert not any(instruction == "ADD" for instruction, _ in dockerfile())


def test_dockerfile_copies_only_what_exists() -> None:
    ignored = {line.strip().strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    for instruction, rest in dockerfile():
        if instruction == "COPY" and "--from=" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source not in ignored, source


def test_dockerfile_is_multi_stage_pinned_and_ends_as_an_ordinary_user() -> None:
    lines = dockerfile()
    starts = [rest for instruction, rest in lines if instruction == "FROM"]
    assert len(starts) == 2
    assert all(start.split()[0] == "python:${PYTHON}" for start in starts)
    (version,) = [rest for instruction, rest in lines if instruction == "ARG" and rest.startswith("PYTHON=")]
    assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-[a-z]+", version), "a patch release and a Debian release"
    (user,) = [rest for instruction, rest in lines if instruction == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "Kubernetes can only check a number against runAsNonRoot"
    assert [name for name, _ in lines].index("USER") > max(i for i, (name, _) in enumerate(lines) if name == "COPY")
    (health,) = [rest for name, rest in lines if name == "HEALTHCHECK"]
    assert "/readyz" in health and "8000" in health


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_its_config(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes % config.num_machines == 0
    assert config.mixed_precision in {"no", "bf16"}


@pytest.mark.slow
def test_two_cpu_processes_really_start_and_see_each_other(tmp_path: Path) -> None:
    script = tmp_path / "count.py"
    script.write_text(
        "import sys, torch\n"
        "from alignment.runtime import Runtime\n"
        "runtime = Runtime()\n"
        "accelerator = runtime.accelerator\n"
        "ranks = accelerator.gather(torch.tensor([accelerator.process_index]))\n"
        "said = f'ranks {ranks.tolist()} on {accelerator.device.type}'\n"
        "open(f'{sys.argv[1]}/{accelerator.process_index}.txt', 'w').write(said)\n"
        "runtime.close()\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(DEPLOY / "accelerate/cpu2.yaml")]
    command = [*launch, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["ranks [0, 1] on cpu"] * 2
