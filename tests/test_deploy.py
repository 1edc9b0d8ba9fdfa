"""What deploy/ promises, as far as it can be checked without a cluster, a GPU or a container engine."""

import importlib.metadata
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from compose_spec import PyOptions
from ray.serve.schema import ServeDeploySchema

from serving.app import build
from serving.cluster import ENVIRONMENT as cluster_environment
from serving.cluster import free_port
from serving.settings import ServingSettings

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
ROOT = DEPLOY.parent
ACCELERATE = sorted((DEPLOY / "accelerate").glob("*.yaml"))


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


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
    assert http.request_timeout_s > settings.streams.max_seconds, "Serve's time-out ends WebSockets too"


def test_serve_config_listens_on_loopback_and_names_the_shipped_bundle() -> None:
    config = serve_configs()["serve.yaml"]
    assert config["http_options"]["host"] == "127.0.0.1"
    assert "grpc_options" not in config
    assert config["applications"][0]["args"]["bundle"] == "generation/demo_bundle"


def test_the_environment_file_is_what_the_service_sets_for_its_own_ray() -> None:
    lines = [line for line in (DEPLOY / "ray.env").read_text().splitlines() if line and not line.startswith("#")]
    assert dict(line.split("=", 1) for line in lines) == {
        name: value for name, value in cluster_environment.items() if name != "RAY_SERVE_LOG_TO_STDERR"
    }


def test_serve_config_fits_a_machine_of_two_cores() -> None:
    from ray.serve._private.build_app import build_app

    application = build(serve_configs()["serve.yaml"]["applications"][0]["args"])
    deployments = build_app(application, name="phosphene").deployments
    asked = {one.name: one.num_replicas * one.ray_actor_options["num_cpus"] for one in deployments}
    assert set(asked) == {"Encoder", "Generator", "Ingress", "Jobs"}
    assert sum(asked.values()) <= 2.0, asked


def test_versions_agree(project_root: Path) -> None:
    pins = dict(
        line.split("==") for line in (project_root / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert cluster()["rayVersion"] == pins["ray"]
    version = re.search(r'^version = "(.+)"', (project_root / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    tags = {container["image"].split(":")[1] for _, _, container in containers()}
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
    # nothing of the environment of `ray up` reaches the machines, so the token goes there as a file
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "RAY_enable_autoscaler_v2=0" in config["head_start_ray_commands"][-1], "the second one starts no workers"
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


RAYSERVICE = DEPLOY / "rayservice.yaml"
KUBERNETES = ("1.33", "1.37")
LABELS = {"app.kubernetes.io/name": "phosphene"}
# Written down from KubeRay's published API types (ray.io/v1); no registry carries its CRD. Pod templates, environment,
# mounts, resources and security contexts in it are Kubernetes types and are checked as such below.
RAY_SERVICE = {
    "serveConfigV2", "rayClusterConfig", "serveService", "upgradeStrategy", "excludeHeadPodFromServeSvc",
    "rayClusterDeletionDelaySeconds",
}  # fmt: skip
RAY_CLUSTER = {
    "authOptions", "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs",
}  # fmt: skip
AUTOSCALER = {
    "resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode", "version", "env",
    "envFrom", "volumeMounts",
}  # fmt: skip
HEAD = {"template", "headService", "enableIngress", "rayStartParams", "serviceType", "resources", "labels"}
WORKERS = {
    "suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams",
    "template", "scaleStrategy", "numOfHosts", "resources", "labels",
}  # fmt: skip


def objects(kind: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(RAYSERVICE.read_text()) if one["kind"] == kind]


def cluster() -> dict[str, Any]:
    (service,) = objects("RayService")
    found = service["spec"]["rayClusterConfig"]
    assert isinstance(found, dict)
    return found


def groups() -> dict[str, dict[str, Any]]:
    return {"head": cluster()["headGroupSpec"]} | {group["groupName"]: group for group in cluster()["workerGroupSpecs"]}


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield (group, pod specification, container)."""
    for name, group in groups().items():
        pod = group["template"]["spec"]
        for container in pod["containers"]:
            yield name, pod, container


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_accepts_every_object_and_pod(version: str) -> None:
    others = [one for one in yaml.safe_load_all(RAYSERVICE.read_text()) if one["kind"] != "RayService"]
    assert len(others) == 5
    for one in others:
        kubernetes_validate.validate(one, version, strict=True)
    for name, group in groups().items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name} | group["template"]["metadata"]}
        kubernetes_validate.validate(pod | {"spec": group["template"]["spec"]}, version, strict=True)
    given = {key: value for key, value in cluster()["autoscalerOptions"].items() if key != "idleTimeoutSeconds"}
    beside = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "autoscaler"}}
    spec = {"containers": [{"name": "autoscaler", "image": "x"} | given]}
    kubernetes_validate.validate(beside | {"spec": spec}, version, strict=True)


def test_a_misspelt_field_is_found() -> None:
    (policy, *_) = objects("NetworkPolicy")
    policy["spec"]["policyType"] = policy["spec"].pop("policyTypes")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(policy, KUBERNETES[0], strict=True)


def test_rayservice_has_the_fields_of_the_published_api() -> None:
    (service,) = objects("RayService")
    assert (service["apiVersion"], set(service)) == ("ray.io/v1", {"apiVersion", "kind", "metadata", "spec"})
    assert set(service["spec"]) <= RAY_SERVICE
    assert set(cluster()) <= RAY_CLUSTER
    assert set(cluster()["autoscalerOptions"]) <= AUTOSCALER
    assert set(groups()["head"]) <= HEAD
    for group in cluster()["workerGroupSpecs"]:
        assert set(group) <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups().values():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes strings only"


def test_the_cluster_asks_for_a_token() -> None:
    assert cluster()["authOptions"] == {"mode": "token"}


def test_pods_have_no_privileges() -> None:
    securities = [container["securityContext"] for _, _, container in containers()]
    for security in [*securities, cluster()["autoscalerOptions"]["securityContext"]]:
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in security
    for name, pod, container in containers():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["automountServiceAccountToken"] is (name == "head"), "only the autoscaler talks to the API server"
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounted) == {"/tmp", "/dev/shm", "/etc/phosphene"} and set(mounted.values()) == set(volumes)
        assert volumes.pop("access") == {"name": "access", "secret": {"secretName": "phosphene-access"}}
        assert all(volume["emptyDir"]["sizeLimit"] for volume in volumes.values())
    assert {"name": "tmp", "mountPath": "/tmp"} in cluster()["autoscalerOptions"]["volumeMounts"]


def test_probes_ask_ports_that_answer_without_a_token() -> None:
    for name, _, container in containers():
        probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        assert probes["startup"] == probes["liveness"] == {"path": "/api/healthz", "port": 52365}
        if name == "head":
            assert probes["readiness"] == probes["liveness"]
        else:
            assert probes["readiness"] == {"path": "/-/healthz", "port": 8000}
        started = container["startupProbe"]
        assert started["periodSeconds"] * started["failureThreshold"] >= 300


def test_every_container_has_requests_and_limits() -> None:
    resources = [container["resources"] for _, _, container in containers()]
    for one in [*resources, cluster()["autoscalerOptions"]["resources"]]:
        assert {"cpu", "memory"} <= set(one["requests"])
        assert one["requests"] == one["limits"], "guaranteed pods are evicted last"


def test_workers_have_the_gpus_that_the_deployments_ask_for() -> None:
    (service,) = objects("RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    settings = ServingSettings.model_validate(application["args"])
    group = groups()["gpu"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    replicas = [settings.encoder, settings.generator]
    assert sum(replica.num_gpus for replica in replicas) <= float(limits["nvidia.com/gpu"])
    assert sum(replica.num_cpus for replica in replicas) <= float(limits["cpu"])
    assert max(max(replica.n_replicas, replica.max_replicas) for replica in replicas) <= group["maxReplicas"]
    assert groups()["head"]["rayStartParams"]["num-cpus"] == "0"
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > settings.request_timeout_s


def test_policies_select_every_pod_and_deny_what_is_not_allowed() -> None:
    for group in groups().values():
        assert group["template"]["metadata"]["labels"] == LABELS
    policies = {one["metadata"]["name"]: one["spec"] for one in objects("NetworkPolicy")}
    deny = policies["phosphene-deny"]
    assert deny == {"podSelector": {"matchLabels": LABELS}, "policyTypes": ["Ingress", "Egress"]}
    for spec in policies.values():
        assert LABELS.items() <= spec["podSelector"]["matchLabels"].items()
        assert set(spec) - {"podSelector", "policyTypes"} <= {kind.lower() for kind in spec["policyTypes"]}


def admitted() -> set[tuple[str, int]]:
    """Return (namespace, port) that may come in from outside the cluster's own pods."""
    found = set()
    for spec in (one["spec"] for one in objects("NetworkPolicy")):
        for rule in spec.get("ingress", []):
            assert rule.get("from"), "a rule without sources lets everybody in"
            for source in rule["from"]:
                if source == {"podSelector": {"matchLabels": LABELS}}:
                    continue
                assert set(source) == {"namespaceSelector"}
                (name,) = source["namespaceSelector"]["matchLabels"].values()
                assert rule.get("ports"), f"{name} would reach every port"
                found |= {(name, port["port"]) for port in rule["ports"]}
    return found


def test_only_the_gateway_reaches_the_service_and_only_the_operator_the_dashboard() -> None:
    assert admitted() == {("gateway", 8000), ("monitoring", 8000), ("monitoring", 8080), ("ray-system", 8265)}
    head = groups()["head"]
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)


def test_only_the_head_leaves_the_cluster_and_only_for_the_api_server() -> None:
    for spec in (one["spec"] for one in objects("NetworkPolicy")):
        for rule in spec.get("egress", []):
            if "to" not in rule:
                assert spec["podSelector"]["matchLabels"]["ray.io/node-type"] == "head"
                assert {port["port"] for port in rule["ports"]} == {443, 6443}


def test_disruption_budgets_cover_head_and_workers() -> None:
    budgets = {one["spec"]["selector"]["matchLabels"]["ray.io/node-type"]: one["spec"] for one in budget_documents()}
    assert budgets["head"]["maxUnavailable"] == 0
    assert budgets["worker"]["minAvailable"] == 1


def budget_documents() -> list[dict[str, Any]]:
    found = objects("PodDisruptionBudget")
    assert all(LABELS.items() <= one["spec"]["selector"]["matchLabels"].items() for one in found)
    return found


PACKAGES = ("encoders", "alignment", "generation", "serving")


@pytest.mark.parametrize("name", PACKAGES)
def test_nothing_else_that_is_installed_owns_our_names(name: str) -> None:
    owners = set(importlib.metadata.packages_distributions().get(name, []))
    assert owners <= {"phosphene"}


@pytest.fixture(scope="module")
def wheel(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_four_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {"generation/demo_bundle/manifest.json", "serving/static/index.html", "serving/static/app.js"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".pth"))]


@pytest.mark.slow
def test_the_installed_wheel_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--no-deps", "--no-index"]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    # The dependencies of this environment behind the wheel; a folder named in a .pth file brings none of its own .pth
    # files, so the editable checkout stays out.
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    code = "import alignment, encoders, generation, serving; print(serving.__file__, encoders.__file__)"
    assert all(path.startswith(str(site)) for path in run(str(python), "-c", code).split())
    phosphene = str(home / "bin/phosphene")
    assert "serve" in run(phosphene, "--help")
    assert "chance" in run(phosphene, "evaluate", "--stored").lower(), "the shipped bundle is read from the wheel"


TOKEN = "0123456789abcdef" * 4


def local_command(folder: str, dashboard_port: int) -> list[str]:
    """Return the head's start command of the file, its paths and fixed ports replaced by ones of this test."""
    text = documents("ray-cluster.yaml")[0]["head_start_ray_commands"][-1]
    text = text.removeprefix("cd /opt/phosphene && ")
    words = [word for word in shlex.split(text) if not word.startswith(("--port=", "--autoscaling-config="))]
    assert "RAY_AUTH_MODE=token" in words
    ray = str(Path(sys.executable).with_name("ray"))
    words = [ray if word == ".venv/bin/ray" else word for word in words]
    own = [f"--port={free_port()}", f"--dashboard-port={dashboard_port}", f"--temp-dir={folder}", "--num-cpus=1"]
    # blocking, so that ending this one process ends its cluster and no other
    return [*words, *own, "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}", "--block"]


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="ph-", dir="/tmp")
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    environment |= {"RAY_AUTH_TOKEN": TOKEN}  # the file has Ray read it from the home folder
    environment |= {"RAY_agent_register_timeout_ms": "120000", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with open(Path(folder) / "head.log", "w") as log:
        head = subprocess.Popen(
            local_command(folder, port), env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240.0
        while True:
            assert head.poll() is None, (Path(folder) / "head.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the dashboard did not answer"
            try:
                if httpx.get(f"{url}/api/healthz", timeout=5.0, trust_env=False).status_code < 500:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        yield url
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_without_the_token_no_job_is_listed_or_started(dashboard: str) -> None:
    job = {"entrypoint": "true"}
    for headers in ({}, {"Authorization": "Bearer " + "0" * 64}):
        with httpx.Client(base_url=dashboard, headers=headers, timeout=60.0, trust_env=False) as stranger:
            answers = [
                stranger.get("/api/jobs/"),
                stranger.post("/api/jobs/", json=job),
                stranger.get("/api/serve/applications/"),
                stranger.put("/api/serve/applications/", json={"applications": []}),
            ]
        assert all(answer.status_code in {401, 403} for answer in answers), [answer.status_code for answer in answers]
        if not headers:
            assert {answer.status_code for answer in answers} == {401}
    known = {"Authorization": f"Bearer {TOKEN}"}
    answer = httpx.get(f"{dashboard}/api/jobs/", headers=known, timeout=60.0, trust_env=False)
    assert (answer.status_code, answer.json()) == (200, []), answer.text


def test_the_start_command_keeps_the_dashboard_on_loopback() -> None:
    words = local_command("/tmp/unused", 1)
    assert "--dashboard-host=127.0.0.1" in words
    assert not re.search(r"0\.0\.0\.0", " ".join(words))
