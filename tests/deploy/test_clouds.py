"""cluster.yaml and deploy/gcp.yaml, tested without a cloud.

cluster.yaml goes through all steps of Ray before it starts a machine, with moto's AWS in this process. gcp.yaml is
checked by Ray's schema and by Google's description of an instance, because there is no stand-in for Google's API.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import boto3
import googleapiclient.discovery_cache
import pytest
from botocore.validate import ParamValidator
from ray.autoscaler._private import commands
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.deploy.cluster_files import (
    AWS_REGION,
    USER_NETWORK,
    fill_in,
    load_yaml,
    make_account,
    read_text,
    run_script,
    write_program,
)

# --- AWS ---


def security_groups() -> dict[str, list[dict[str, Any]]]:
    """The rules of every security group of the account, by the name of the group."""
    found = boto3.client("ec2", region_name=AWS_REGION).describe_security_groups()["SecurityGroups"]
    return {group["GroupName"]: group["IpPermissions"] for group in found}


def open_ports(rules: list[dict[str, Any]]) -> list[tuple[Any, str]]:
    """The ports that are open to networks outside, each with the network."""
    ipv4 = [(rule.get("FromPort"), each["CidrIp"]) for rule in rules for each in rule["IpRanges"]]
    return ipv4 + [(rule.get("FromPort"), each["CidrIpv6"]) for rule in rules for each in rule["Ipv6Ranges"]]


@pytest.mark.usefixtures("aws")
def test_on_aws_only_ssh_from_the_users_network_is_open(capsys: pytest.CaptureFixture[str]) -> None:
    resolved = commands._bootstrap_config(fill_in(make_account(capsys)), no_config_cache=True)
    rules = security_groups()
    assert set(rules) == {"default", "kdray"}  # Ray has made no other group
    assert open_ports(rules["kdray"]) == [(22, USER_NETWORK)]
    assert open_ports(rules["default"]) == []
    (internal,) = [rule for rule in rules["kdray"] if rule["UserIdGroupPairs"]]
    ids = [kind["node_config"]["SecurityGroupIds"] for kind in resolved["available_node_types"].values()]
    assert ids == [[pair["GroupId"] for pair in internal["UserIdGroupPairs"]]] * 2


@pytest.mark.usefixtures("aws")
def test_on_aws_ray_finds_all_resources_that_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    resolved = commands._bootstrap_config(fill_in(make_account(capsys)), no_config_cache=True)
    head, gpu = resolved["available_node_types"]["head"], resolved["available_node_types"]["gpu"]
    assert (head["resources"]["CPU"], head["resources"].get("GPU", 0)) == (0, 0)
    assert (gpu["resources"]["CPU"], gpu["resources"]["GPU"]) == (8, 1)
    assert [gpu["max_workers"], head["max_workers"]] == [4, 0]
    roles = {role["RoleName"] for role in boto3.client("iam").list_roles()["Roles"]}
    assert "ray-autoscaler-v1" not in roles  # Ray makes this role, with all rights, for a node type without a role
    for kind in (head, gpu):
        assert_valid_instance({**kind["node_config"], "MinCount": 1, "MaxCount": 1})


def assert_valid_instance(request: dict[str, Any]) -> None:
    """Check that EC2's description of RunInstances has every field of the request."""
    subnet, *_ = request.pop("SubnetIds")
    shape = boto3.client("ec2", region_name=AWS_REGION).meta.service_model.operation_model("RunInstances").input_shape
    report = ParamValidator().validate({**request, "SubnetId": subnet}, shape)
    assert not report.has_errors(), report.generate_report()


@pytest.mark.usefixtures("aws")
def test_a_new_network_replaces_the_old_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_account(capsys)[1] == make_account(capsys, "198.51.100.0/24")[1]
    assert open_ports(security_groups()["kdray"]) == [(22, "198.51.100.0/24")]
    (internal,) = [rule for rule in security_groups()["kdray"] if rule["UserIdGroupPairs"]]
    everyone = {"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ec2, group = boto3.client("ec2", region_name=AWS_REGION), internal["UserIdGroupPairs"][0]["GroupId"]
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[everyone])
    make_account(capsys, "2001:db8::/64")
    assert open_ports(security_groups()["kdray"]) == [(22, "2001:db8::/64")]


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("network", ["0.0.0.0/0", "0.0.0.0/1", "10.0.0.0/8", "::/0", "EDIT", "203.0.113.7/24"])
def test_a_network_that_is_too_wide_or_invalid_is_refused_before_anything_is_made(
    network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        make_account(capsys, network)
    assert refused.value.code == 2
    assert network in capsys.readouterr().err
    assert set(security_groups()) == {"default"}


@pytest.mark.usefixtures("aws")
def test_cluster_yaml_without_its_security_group_is_refused_and_opens_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = make_account(capsys)
    lines[1] = "        - sg-EDIT"
    with pytest.raises(AssertionError):
        commands._bootstrap_config(fill_in(lines), no_config_cache=True)
    assert "Failed to detect a security group" in capsys.readouterr().err
    assert set(security_groups()) == {"default", "kdray"}


@pytest.mark.usefixtures("aws")
def test_cluster_yaml_without_edits_is_refused() -> None:
    with pytest.raises(KeyError, match="edit-region"):  # moto has no such region; AWS has no such host
        commands._bootstrap_config(load_yaml("cluster.yaml"), no_config_cache=True)


@pytest.mark.usefixtures("aws")
def test_ray_still_opens_ssh_to_the_world_in_a_group_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """The reason why kdray makes the group. If this fails, Ray has changed, and cluster.yaml can be made simpler."""
    config = fill_in(make_account(capsys))
    for kind in config["available_node_types"].values():
        del kind["node_config"]["SecurityGroupIds"]
    rule = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": USER_NETWORK}]}
    config["provider"]["security_group"] = {"GroupName": "rays", "IpPermissions": [rule]}
    commands._bootstrap_config(config, no_config_cache=True)
    assert (22, "0.0.0.0/0") in open_ports(security_groups()["rays"])


# --- Google Cloud ---


def test_ray_accepts_gcp_yaml() -> None:
    config = GCPNodeProvider.fillout_available_node_types_resources(prepare_config(load_yaml("deploy/gcp.yaml")))
    validate_config(config)
    assert config["available_node_types"]["gpu"]["max_workers"] == 4
    assert not any("pip install" in command for command in config["head_setup_commands"])


def test_the_instances_of_gcp_yaml_follow_googles_schema() -> None:
    folder = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    schemas = json.loads((folder / "compute.v1.json").read_text())["schemas"]
    for kind in load_yaml("deploy/gcp.yaml")["available_node_types"].values():
        assert_follows_schema(kind["node_config"], {"$ref": "Instance"}, schemas, "instance")


def assert_follows_schema(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> None:
    """Check names, types and allowed words of a value by a schema of Google's discovery documents."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    has_type = isinstance(value, types[schema["type"]]) or schema.get("format") in ("int64", "uint64")
    assert has_type, f"{where}: {value!r} is no {schema['type']}"
    assert "enum" not in schema or value in schema["enum"], f"{where}: {value!r} is none of {schema['enum']}"
    if isinstance(value, list):
        for each in value:
            assert_follows_schema(each, schema["items"], schemas, f"{where}[]")
    if isinstance(value, dict):
        for name, each in value.items():
            assert name in schema["properties"], f"{where}.{name}: unknown"
            assert_follows_schema(each, schema["properties"][name], schemas, f"{where}.{name}")


def test_on_gcp_nodes_are_in_their_own_network() -> None:
    kinds = load_yaml("deploy/gcp.yaml")["available_node_types"].values()
    subnets = [each["subnetwork"] for kind in kinds for each in kind["node_config"]["networkInterfaces"]]
    assert subnets == ["regions/us-central1/subnetworks/kdray"] * 2


@pytest.fixture
def gcloud(tmp_path: Path) -> dict[str, str]:
    """The environment with a stand-in for gcloud: an empty project, whose commands are recorded in a file."""
    write_program(
        tmp_path / "gcloud",
        f'echo "$@" >>{tmp_path}/commands',
        '[[ "$*" == *describe\\ [kg][ds]* ]] && exit 1',
        "echo 42",
    )
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def test_on_gcp_only_ssh_from_the_users_network_is_open(gcloud: dict[str, str], tmp_path: Path) -> None:
    done = run_script("deploy/gcp_account.sh", "my-project", "us-central1", USER_NETWORK, "mine", **gcloud)
    assert done.returncode == 0, done.stderr
    rules = [line for line in (tmp_path / "commands").read_text().splitlines() if "firewall-rules create" in line]
    assert [re.findall(r"--(?:source-ranges|allow) (\S+)", rule) for rule in rules] == [
        ["10.77.0.0/20", "tcp,udp,icmp"],
        [USER_NETWORK, "tcp:22"],
    ]
    # The rights in the bucket have a condition, which names the folder.
    (rights,) = [line for line in (tmp_path / "commands").read_text().splitlines() if "add-iam-policy-binding" in line]
    assert "--role roles/storage.objectUser" in rights
    (condition,) = re.findall(r"--condition-from-file (\S+)", rights)
    assert not Path(condition).exists()
    assert 'objects/$folder/") ||' in read_text("deploy/gcp_account.sh")
    edits = [line.partition("#")[0].strip() for line in read_text("deploy/gcp.yaml").splitlines() if "# EDIT" in line]
    printed = [line.strip() for line in done.stdout.splitlines()[-2:]]
    expected = [edit.replace("EDIT-project", "my-project").replace("EDIT-bucket", "mine") for edit in edits]
    assert printed == expected


@pytest.mark.parametrize("network", ["0.0.0.0/0", "10.0.0.0/8", "EDIT", "203.0.113.7", "::/0"])
def test_on_gcp_a_network_that_is_too_wide_or_invalid_is_refused(
    network: str, gcloud: dict[str, str], tmp_path: Path
) -> None:
    refused = run_script("deploy/gcp_account.sh", "my-project", "us-central1", network, "mine", **gcloud)
    assert refused.returncode == 2
    assert network in refused.stderr
    assert not (tmp_path / "commands").exists()
