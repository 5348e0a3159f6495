"""The RayJob: KubeRay's schema, its open ports and its rights; and the same for the MLflow server of a team."""

import re
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.cluster_files import RAYJOB, SHARED, load_documents, load_yaml, rayjob, read_text

HEAD = {"ray.io/cluster": "sst2-x", "ray.io/node-type": "head"}
WORKER = {"ray.io/cluster": "sst2-x", "ray.io/node-type": "worker"}
SUBMITTER = {"batch.kubernetes.io/job-name": "sst2"}
MLFLOW = {"app": "kdray-mlflow"}
STRANGER = {"app": "shell"}
"""The labels of pods in the namespace."""


# --- Kubernetes ---


def pods() -> list[dict[str, Any]]:
    """The pods of the head, of the workers and of MLflow."""
    cluster = rayjob()["spec"]["rayClusterSpec"]
    (deployment,) = of_kind("Deployment")
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"], deployment["spec"]]
    return [template["template"]["spec"] for template in templates]


def head_container() -> dict[str, Any]:
    container: dict[str, Any] = pods()[0]["containers"][0]
    return container


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in load_documents(RAYJOB) if document["kind"] == kind]


@cache
def crd(name: str) -> dict[str, Any]:
    """The schema of a custom resource. It refuses unknown fields, about which the API server only warns."""
    path = SHARED / "kuberay" / name
    if not path.exists():
        pytest.skip(f"{path}: KubeRay's schemas are not part of the project")
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    return close_schema(schema)


def assert_valid(resource: dict[str, Any], schema: dict[str, Any]) -> None:
    """Raise a ValidationError, which names the field, if the resource does not follow the schema."""
    for error in jsonschema.Draft202012Validator(schema).iter_errors(resource):
        raise error


def close_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A copy of the schema that refuses fields which it does not name."""
    result = {key: value for key, value in schema.items() if key not in ("properties", "items", "format")}
    if "properties" in schema:
        result["properties"] = {name: close_schema(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    if isinstance(schema.get("items"), dict):
        result["items"] = close_schema(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = close_schema(schema["additionalProperties"])
    return result


def test_the_rayjob_follows_kuberays_schema() -> None:
    assert_valid(rayjob(), crd("ray.io_rayjobs.yaml"))


def test_the_cluster_of_the_rayjob_follows_kuberays_schema() -> None:
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "kdray"}}
    assert_valid(cluster | {"spec": rayjob()["spec"]["rayClusterSpec"]}, crd("ray.io_rayclusters.yaml"))


def test_a_misspelt_field_of_the_rayjob_is_found() -> None:
    job, schema = rayjob(), crd("ray.io_rayjobs.yaml")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        assert_valid(job, schema)


def test_on_kubernetes_ray_requires_the_token_of_a_secret_that_is_not_in_the_file() -> None:
    assert rayjob()["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "kdray-token"}
    assert not of_kind("Secret")


def test_on_kubernetes_nothing_is_reachable_from_outside() -> None:
    assert [service["spec"]["type"] for service in of_kind("Service")] == ["ClusterIP"]
    assert not of_kind("Ingress")
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind("NetworkPolicy")}
    closed = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert policies["kdray-closed"] == closed
    sources = [source for policy in policies.values() for rule in policy.get("ingress", []) for source in rule["from"]]
    assert all(source.get("podSelector") for source in sources)  # named pods; no networks, no whole namespaces
    outside = [source for source in sources if "namespaceSelector" in source]
    assert outside == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
        }
    ]
    assert {document["metadata"]["namespace"] for document in load_documents(RAYJOB)} == {"kdray"}


@pytest.mark.parametrize(
    ("source", "target", "port", "expected"),
    [
        (HEAD, WORKER, 10001, True),
        (WORKER, HEAD, 6379, True),
        (WORKER, MLFLOW, 5000, True),
        (WORKER, MLFLOW, 22, False),
        (SUBMITTER, HEAD, 8265, True),
        (SUBMITTER, HEAD, 6379, False),
        (SUBMITTER, MLFLOW, 5000, False),
        (MLFLOW, HEAD, 8265, False),
        (STRANGER, HEAD, 8265, False),
        (STRANGER, MLFLOW, 5000, False),
    ],
)
def test_on_kubernetes_the_policies_let_through_what_a_sweep_needs_and_nothing_else(
    source: dict[str, str], target: dict[str, str], port: int, expected: bool
) -> None:
    assert (may(source, target, port, "egress") and may(target, source, port, "ingress")) is expected


def may(pod: dict[str, str], peer: dict[str, str], port: int, direction: str) -> bool:
    """Whether a policy of the pod lets traffic of this direction through between pods of the namespace."""
    for policy in of_kind("NetworkPolicy"):
        if not selects(policy["spec"]["podSelector"], pod):
            continue
        for rule in policy["spec"].get(direction, []):
            peers = rule["to" if direction == "egress" else "from"]
            has_port = "ports" not in rule or any(each["port"] == port for each in rule["ports"])
            inside = [each for each in peers if set(each) == {"podSelector"}]
            if has_port and any(selects(each["podSelector"], peer) for each in inside):
                return True
    return False


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    needed = selector.get("matchLabels", {})
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "Exists" for each in expressions)
    return needed.items() <= labels.items() and all(each["key"] in labels for each in expressions)


def test_on_kubernetes_only_the_head_reaches_addresses_outside_and_never_the_metadata_server() -> None:
    blocks = {
        policy["metadata"]["name"]: (to["ipBlock"], [each["port"] for each in rule["ports"]])
        for policy in of_kind("NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for to in rule["to"]
        if "ipBlock" in to
    }
    assert blocks == {"kdray-head": ({"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}, [443, 6443])}


def test_on_kubernetes_images_are_named_by_digest_and_the_secret_comes_from_a_file() -> None:
    images = [container["image"] for pod in pods() for container in pod["containers"]]
    assert len(set(images)) == 1
    assert "@sha256:" in images[0]
    for name in (RAYJOB, "docs/cluster.md"):
        assert "--from-literal" not in read_text(name)
        assert "--from-file=auth_token" in read_text(name)


def test_mlflow_runs_no_jobs_anywhere() -> None:
    switch = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"
    assert {"name": switch, "value": "false"} in pods()[2]["containers"][0]["env"]
    assert load_yaml("deploy/mlflow/compose.yaml")["services"]["mlflow"]["environment"][switch] == "false"
    assert f"ENV {switch}=false" in read_text("deploy/mlflow/Dockerfile")
    assert f"\n{switch}=false " in read_text("deploy/mlflow.sh")


def test_on_kubernetes_pods_have_no_more_rights_than_they_need() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(container["securityContext"]["capabilities"] == {"drop": ["ALL"]} for container in pod["containers"])
        assert all(not container["securityContext"]["allowPrivilegeEscalation"] for container in pod["containers"])
    # Only the autoscaler, in the head's pod, calls the API of Kubernetes.
    assert [pod["automountServiceAccountToken"] for pod in pods()] == [True, False, False]


def test_on_kubernetes_workers_scale_with_the_sweep_and_the_head_takes_no_slots() -> None:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    (gpu,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (0, 4)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert 0 < cluster["autoscalerOptions"]["idleTimeoutSeconds"] <= 1800
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_on_kubernetes_all_nodes_share_one_storage_and_the_driver_has_the_address_of_mlflow() -> None:
    claims = {claim["metadata"]["name"]: claim["spec"]["accessModes"] for claim in of_kind("PersistentVolumeClaim")}
    assert claims["kdray-storage"] == ["ReadWriteMany"]
    for pod in pods()[:2]:
        mounted = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounted["/storage"]]["persistentVolumeClaim"]["claimName"] == "kdray-storage"
    environment = {each["name"]: each["value"] for each in head_container()["env"]}
    (service,) = of_kind("Service")
    address = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert environment == {"KDRAY_STORAGE": "/storage/results", "MLFLOW_TRACKING_URI": f"http://{address}"}
    assert any(argument.startswith(f"--allowed-hosts={address},") for argument in pods()[2]["containers"][0]["args"])


# --- MLflow for a team ---


def test_the_teams_mlflow_has_no_secret_in_its_files_and_does_not_start_without_them() -> None:
    services = load_yaml("deploy/mlflow/compose.yaml")["services"]
    secrets = {
        value
        for service in services.values()
        for name, value in service["environment"].items()
        if re.search("PASSWORD|KEY", name)
    }
    assert len(secrets) == 3
    assert all(re.fullmatch(r"\$\{[A-Z_]+:\?.*\}", secret) for secret in secrets)
    settings = read_text("deploy/mlflow/auth.ini") + read_text("deploy/mlflow/Dockerfile")
    assert not re.search(r"^admin_password|://[^/\s]*:[^/\s]*@", settings, re.MULTILINE)


def test_the_teams_mlflow_requires_a_login_and_listens_on_the_loopback_interface() -> None:
    compose = load_yaml("deploy/mlflow/compose.yaml")
    assert compose["services"]["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    assert "ports" not in compose["services"]["database"]
    assert compose["services"]["database"]["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}
    assert "--app-name basic-auth" in read_text("deploy/mlflow/Dockerfile")
    assert "USER mlflow" in read_text("deploy/mlflow/Dockerfile")
