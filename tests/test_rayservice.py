"""deploy/rayservice.yaml: the schemas of Kubernetes, the fields of KubeRay, who may reach what, and with what rights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.settings import ServingSettings

FILE = Path(__file__).resolve().parents[1] / "deploy/rayservice.yaml"
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


def documents(kind: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(FILE.read_text()) if one["kind"] == kind]


def cluster() -> dict[str, Any]:
    (service,) = documents("RayService")
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
    others = [one for one in yaml.safe_load_all(FILE.read_text()) if one["kind"] != "RayService"]
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
    (policy, *_) = documents("NetworkPolicy")
    policy["spec"]["policyType"] = policy["spec"].pop("policyTypes")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(policy, KUBERNETES[0], strict=True)


def test_rayservice_has_the_fields_of_the_published_api() -> None:
    (service,) = documents("RayService")
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
        assert set(mounted) == {"/tmp", "/dev/shm"} and set(mounted.values()) == set(volumes)
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
    (service,) = documents("RayService")
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
    policies = {one["metadata"]["name"]: one["spec"] for one in documents("NetworkPolicy")}
    deny = policies["phosphene-deny"]
    assert deny == {"podSelector": {"matchLabels": LABELS}, "policyTypes": ["Ingress", "Egress"]}
    for spec in policies.values():
        assert LABELS.items() <= spec["podSelector"]["matchLabels"].items()
        assert set(spec) - {"podSelector", "policyTypes"} <= {kind.lower() for kind in spec["policyTypes"]}


def admitted() -> set[tuple[str, int]]:
    """Return (namespace, port) that may come in from outside the cluster's own pods."""
    found = set()
    for spec in (one["spec"] for one in documents("NetworkPolicy")):
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
    for spec in (one["spec"] for one in documents("NetworkPolicy")):
        for rule in spec.get("egress", []):
            if "to" not in rule:
                assert spec["podSelector"]["matchLabels"]["ray.io/node-type"] == "head"
                assert {port["port"] for port in rule["ports"]} == {443, 6443}


def test_disruption_budgets_cover_head_and_workers() -> None:
    budgets = {one["spec"]["selector"]["matchLabels"]["ray.io/node-type"]: one["spec"] for one in budget_documents()}
    assert budgets["head"]["maxUnavailable"] == 0
    assert budgets["worker"]["minAvailable"] == 1


def budget_documents() -> list[dict[str, Any]]:
    found = documents("PodDisruptionBudget")
    assert all(LABELS.items() <= one["spec"]["selector"]["matchLabels"].items() for one in found)
    return found
