"""The RayJob by KubeRay's own schema, what it opens and may do; and the same of the MLflow server for a team."""

import re
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.cluster_files import RAYJOB, SHARED, documents, loaded, rayjob, text

# --- Kubernetes ---


def pods() -> list[dict[str, Any]]:
    """The head's, the workers' and MLflow's."""
    cluster = rayjob()["spec"]["rayClusterSpec"]
    (deployment,) = of_kind("Deployment")
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"], deployment["spec"]]
    return [template["template"]["spec"] for template in templates]


def head_container() -> dict[str, Any]:
    container: dict[str, Any] = pods()[0]["containers"][0]
    return container


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in documents(RAYJOB) if document["kind"] == kind]


@cache
def crd(name: str) -> dict[str, Any]:
    """The schema of a custom resource, with unknown fields refused, as the API server warns of them."""
    path = SHARED / "kuberay" / name
    if not path.exists():
        pytest.skip(f"{path}: KubeRay's schemas do not travel with the project")
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    return closed(schema)


def assert_valid(resource: dict[str, Any], schema: dict[str, Any]) -> None:
    """Raises a ValidationError that names the field."""
    for error in jsonschema.Draft202012Validator(schema).iter_errors(resource):
        raise error


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without room for fields that it does not name."""
    result = {key: value for key, value in schema.items() if key not in ("properties", "items", "format")}
    if "properties" in schema:
        result["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    if isinstance(schema.get("items"), dict):
        result["items"] = closed(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = closed(schema["additionalProperties"])
    return result


def test_the_rayjob_is_what_kuberay_takes():
    assert_valid(rayjob(), crd("ray.io_rayjobs.yaml"))


def test_its_cluster_is_what_kuberay_takes():
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "kdray"}}
    assert_valid(cluster | {"spec": rayjob()["spec"]["rayClusterSpec"]}, crd("ray.io_rayclusters.yaml"))


def test_a_misspelt_field_of_the_rayjob_would_be_noticed():
    job, schema = rayjob(), crd("ray.io_rayjobs.yaml")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        assert_valid(job, schema)


def test_on_kubernetes_every_ray_asks_for_the_token_of_a_secret_that_is_not_in_the_file():
    assert rayjob()["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "kdray-token"}
    assert not of_kind("Secret")


def test_on_kubernetes_nothing_is_reachable_from_outside():
    assert [service["spec"]["type"] for service in of_kind("Service")] == ["ClusterIP"]
    assert not of_kind("Ingress")
    (policy,) = of_kind("NetworkPolicy")
    assert policy["spec"]["podSelector"] == {}
    assert all("ipBlock" not in source for rule in policy["spec"]["ingress"] for source in rule["from"])
    assert {document["metadata"]["namespace"] for document in documents(RAYJOB)} == {"kdray"}


def test_on_kubernetes_pods_have_no_more_rights_than_they_need():
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert all(not container["securityContext"]["allowPrivilegeEscalation"] for container in pod["containers"])
    assert [pod["automountServiceAccountToken"] for pod in pods()] == [True, False, False]  # only the autoscaler's


def test_on_kubernetes_workers_scale_with_the_sweep_and_the_head_takes_no_slots():
    cluster = rayjob()["spec"]["rayClusterSpec"]
    (gpu,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (0, 4)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert 0 < cluster["autoscalerOptions"]["idleTimeoutSeconds"] <= 1800
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_on_kubernetes_all_nodes_see_one_storage_and_the_driver_its_mlflow():
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


def test_the_teams_mlflow_has_no_secret_in_its_files_and_starts_with_none_missing():
    services = loaded("deploy/mlflow/compose.yaml")["services"]
    secrets = {
        value
        for service in services.values()
        for name, value in service["environment"].items()
        if re.search("PASSWORD|KEY", name)
    }
    assert len(secrets) == 3
    assert all(re.fullmatch(r"\$\{[A-Z_]+:\?.*\}", secret) for secret in secrets)
    settings = text("deploy/mlflow/auth.ini") + text("deploy/mlflow/Dockerfile")
    assert not re.search(r"^admin_password|://[^/\s]*:[^/\s]*@", settings, re.MULTILINE)


def test_the_teams_mlflow_asks_who_you_are_and_listens_on_loopback():
    compose = loaded("deploy/mlflow/compose.yaml")
    assert compose["services"]["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    assert "ports" not in compose["services"]["database"]
    assert compose["services"]["database"]["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}
    assert "--app-name basic-auth" in text("deploy/mlflow/Dockerfile")
    assert "USER mlflow" in text("deploy/mlflow/Dockerfile")
