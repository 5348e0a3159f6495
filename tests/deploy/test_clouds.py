"""cluster.yaml and deploy/gcp.yaml as far as a cloud can be had without one.

cluster.yaml goes through all that Ray does before it starts a machine, against moto's AWS in this process; gcp.yaml
through Ray's schema and Google's description of an instance, for there is no stand-in for Google's API.
"""

import json
import os
import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import googleapiclient.discovery_cache
import pytest
import yaml
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import config as ray_aws
from ray.autoscaler._private.aws import node_provider as ray_aws_nodes
from ray.autoscaler._private.aws import utils as ray_aws_utils
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.deploy.cluster_files import MINE, ROOT, loaded, program, run_script, text

REGION = "eu-central-1"


# --- AWS ---


instance_types = cache(ray_aws_nodes.list_ec2_instances)
"""What Ray asks AWS for: the same for all tests, and seconds each time."""


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty AWS account inside this process, and a home for the key that Ray makes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(ray_aws.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(ray_aws_nodes, "list_ec2_instances", instance_types)
    with mock_aws():
        for cached in (ray_aws._get_subnets_or_die, ray_aws_utils.resource_cache, ray_aws_utils.client_cache):
            cached.cache_clear()
        yield


def account(capsys: pytest.CaptureFixture[str], ssh_from: str = MINE) -> list[str]:
    """Make what cluster.yaml refers to; the lines that are printed for it."""
    run_account("--region", REGION, "--ssh-from", ssh_from, "--bucket", "mine")
    return capsys.readouterr().out.splitlines()[1:]


def run_account(*arguments: str) -> None:
    runpy.run_path(str(ROOT / "deploy" / "aws_account.py"))["main"](list(arguments))


def filled_in(lines: list[str]) -> dict[str, Any]:
    """cluster.yaml with these lines in the place of those marked EDIT."""
    given = iter(lines)
    whole = [next(given) if "# EDIT" in line else line for line in text("cluster.yaml").splitlines()]
    config: dict[str, Any] = yaml.safe_load("\n".join(whole))
    return config


def groups() -> dict[str, list[dict[str, Any]]]:
    """The rules of every security group of the account, by its name."""
    found = boto3.client("ec2", region_name=REGION).describe_security_groups()["SecurityGroups"]
    return {group["GroupName"]: group["IpPermissions"] for group in found}


def admitted(rules: list[dict[str, Any]]) -> list[tuple[Any, str]]:
    """Which port each network outside may reach."""
    v4 = [(rule.get("FromPort"), each["CidrIp"]) for rule in rules for each in rule["IpRanges"]]
    return v4 + [(rule.get("FromPort"), each["CidrIpv6"]) for rule in rules for each in rule["Ipv6Ranges"]]


@pytest.mark.usefixtures("aws")
def test_on_aws_only_ssh_from_the_given_network_comes_in(capsys: pytest.CaptureFixture[str]):
    resolved = commands._bootstrap_config(filled_in(account(capsys)), no_config_cache=True)
    rules = groups()
    assert set(rules) == {"default", "kdray"}  # Ray has made none
    assert admitted(rules["kdray"]) == [(22, MINE)]
    assert admitted(rules["default"]) == []
    (among,) = [rule for rule in rules["kdray"] if rule["UserIdGroupPairs"]]
    ids = [kind["node_config"]["SecurityGroupIds"] for kind in resolved["available_node_types"].values()]
    assert ids == [[pair["GroupId"] for pair in among["UserIdGroupPairs"]]] * 2


@pytest.mark.usefixtures("aws")
def test_on_aws_ray_finds_everything_it_asks_for(capsys: pytest.CaptureFixture[str]):
    resolved = commands._bootstrap_config(filled_in(account(capsys)), no_config_cache=True)
    head, gpu = resolved["available_node_types"]["head"], resolved["available_node_types"]["gpu"]
    assert (head["resources"]["CPU"], head["resources"].get("GPU", 0)) == (0, 0)
    assert (gpu["resources"]["CPU"], gpu["resources"]["GPU"]) == (8, 1)
    assert [gpu["max_workers"], head["max_workers"]] == [4, 0]
    roles = {role["RoleName"] for role in boto3.client("iam").list_roles()["Roles"]}
    assert "ray-autoscaler-v1" not in roles  # what Ray makes where no role is named: it may do everything
    for kind in (head, gpu):
        assert_instance({**kind["node_config"], "MinCount": 1, "MaxCount": 1})


def assert_instance(request: dict[str, Any]) -> None:
    """EC2's own description of RunInstances knows every field."""
    subnet, *_ = request.pop("SubnetIds")
    shape = boto3.client("ec2", region_name=REGION).meta.service_model.operation_model("RunInstances").input_shape
    report = ParamValidator().validate({**request, "SubnetId": subnet}, shape)
    assert not report.has_errors(), report.generate_report()


@pytest.mark.usefixtures("aws")
def test_nodes_may_use_the_bucket_and_the_head_may_start_workers(capsys: pytest.CaptureFixture[str]):
    account(capsys)
    iam = boto3.client("iam")
    worker, head = (allowed(iam, name) for name in ("kdray-worker", "kdray-head"))
    assert {action.split(":")[0] for action in worker} == {"s3"}
    assert worker["s3:PutObject"] == "arn:aws:s3:::mine/*"
    assert head["iam:PassRole"].endswith(":role/kdray-worker")
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "ssm:GetParameters"} <= set(head)
    blocked = boto3.client("s3").get_public_access_block(Bucket="mine")["PublicAccessBlockConfiguration"]
    assert all(blocked.values())


def allowed(iam: Any, role: str) -> dict[str, Any]:
    """What a role may do, and to what."""
    statements = iam.get_role_policy(RoleName=role, PolicyName="kdray")["PolicyDocument"]["Statement"]
    as_list = {True: lambda action: [action], False: list}
    return {
        action: statement["Resource"]
        for statement in statements
        for action in as_list[isinstance(statement["Action"], str)](statement["Action"])
    }


@pytest.mark.usefixtures("aws")
def test_a_new_network_takes_the_place_of_the_old_one(capsys: pytest.CaptureFixture[str]):
    assert account(capsys)[1] == account(capsys, "198.51.100.0/24")[1]
    assert admitted(groups()["kdray"]) == [(22, "198.51.100.0/24")]
    among = [rule for rule in groups()["kdray"] if rule["UserIdGroupPairs"]]
    assert len(among) == 1
    everyone = {"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ec2, group = boto3.client("ec2", region_name=REGION), among[0]["UserIdGroupPairs"][0]["GroupId"]
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[everyone])
    account(capsys, "2001:db8::/64")
    assert admitted(groups()["kdray"]) == [(22, "2001:db8::/64")]


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("network", ["0.0.0.0/0", "0.0.0.0/1", "10.0.0.0/8", "::/0", "EDIT", "203.0.113.7/24"])
def test_a_network_that_is_too_wide_or_none_is_refused_before_anything_is_made(
    network: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as refused:
        account(capsys, network)
    assert refused.value.code == 2
    assert network in capsys.readouterr().err
    assert set(groups()) == {"default"}


@pytest.mark.usefixtures("aws")
def test_without_its_group_cluster_yaml_is_refused_and_opens_nothing(capsys: pytest.CaptureFixture[str]):
    lines = account(capsys)
    lines[1] = "        - sg-EDIT"
    with pytest.raises(AssertionError):
        commands._bootstrap_config(filled_in(lines), no_config_cache=True)
    assert "Failed to detect a security group" in capsys.readouterr().err
    assert set(groups()) == {"default", "kdray"}


@pytest.mark.usefixtures("aws")
def test_as_it_is_in_the_repository_cluster_yaml_is_refused():
    with pytest.raises(KeyError, match="edit-region"):  # moto has no such region; AWS has no such host
        commands._bootstrap_config(loaded("cluster.yaml"), no_config_cache=True)


@pytest.mark.usefixtures("aws")
def test_the_rule_for_which_the_group_is_not_left_to_ray(capsys: pytest.CaptureFixture[str]):
    """When this fails, Ray has learnt to close its own group, and cluster.yaml can be made simpler."""
    config = filled_in(account(capsys))
    for kind in config["available_node_types"].values():
        del kind["node_config"]["SecurityGroupIds"]
    rule = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": MINE}]}
    config["provider"]["security_group"] = {"GroupName": "rays", "IpPermissions": [rule]}
    commands._bootstrap_config(config, no_config_cache=True)
    assert (22, "0.0.0.0/0") in admitted(groups()["rays"])


# --- Google Cloud ---


def test_gcp_yaml_is_what_ray_takes():
    config = GCPNodeProvider.fillout_available_node_types_resources(prepare_config(loaded("deploy/gcp.yaml")))
    validate_config(config)
    assert config["available_node_types"]["gpu"]["max_workers"] == 4
    assert not any("pip install" in command for command in config["head_setup_commands"])


def test_gcp_yaml_describes_instances_as_google_does():
    folder = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    schemas = json.loads((folder / "compute.v1.json").read_text())["schemas"]
    for kind in loaded("deploy/gcp.yaml")["available_node_types"].values():
        assert_google(kind["node_config"], {"$ref": "Instance"}, schemas, "instance")


def assert_google(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> None:
    """A value against one of the schemas of Google's discovery documents: names, types and allowed words."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    right = isinstance(value, types[schema["type"]]) or schema.get("format") in ("int64", "uint64")
    assert right, f"{where}: {value!r} is no {schema['type']}"
    assert "enum" not in schema or value in schema["enum"], f"{where}: {value!r} is none of {schema['enum']}"
    if isinstance(value, list):
        for each in value:
            assert_google(each, schema["items"], schemas, f"{where}[]")
    if isinstance(value, dict):
        for name, each in value.items():
            assert name in schema["properties"], f"{where}.{name}: unknown"
            assert_google(each, schema["properties"][name], schemas, f"{where}.{name}")


def test_on_gcp_nodes_are_in_a_network_of_their_own():
    kinds = loaded("deploy/gcp.yaml")["available_node_types"].values()
    subnets = [each["subnetwork"] for kind in kinds for each in kind["node_config"]["networkInterfaces"]]
    assert subnets == ["regions/us-central1/subnetworks/kdray"] * 2


@pytest.fixture
def gcloud(tmp_path: Path) -> dict[str, str]:
    """A gcloud that has nothing yet, and writes down what it is asked for."""
    program(
        tmp_path / "gcloud", f'echo "$@" >>{tmp_path}/asked', '[[ "$*" == *describe\\ [kg][ds]* ]] && exit 1', "echo 42"
    )
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def test_on_gcp_only_ssh_from_the_given_network_comes_in(gcloud: dict[str, str], tmp_path: Path):
    made = run_script("deploy/gcp_account.sh", "my-project", "us-central1", MINE, "mine", **gcloud)
    assert made.returncode == 0, made.stderr
    rules = [line for line in (tmp_path / "asked").read_text().splitlines() if "firewall-rules create" in line]
    assert [re.findall(r"--(?:source-ranges|allow) (\S+)", rule) for rule in rules] == [
        ["10.77.0.0/20", "tcp,udp,icmp"],
        [MINE, "tcp:22"],
    ]
    edits = [line.partition("#")[0].strip() for line in text("deploy/gcp.yaml").splitlines() if "# EDIT" in line]
    printed = [line.strip() for line in made.stdout.splitlines()[-2:]]
    given = [edit.replace("EDIT-project", "my-project").replace("EDIT-bucket", "mine") for edit in edits]
    assert printed == given


@pytest.mark.parametrize("network", ["0.0.0.0/0", "10.0.0.0/8", "EDIT", "203.0.113.7", "::/0"])
def test_on_gcp_a_network_that_is_too_wide_or_none_is_refused(network: str, gcloud: dict[str, str], tmp_path: Path):
    refused = run_script("deploy/gcp_account.sh", "my-project", "us-central1", network, "mine", **gcloud)
    assert refused.returncode == 2
    assert network in refused.stderr
    assert not (tmp_path / "asked").exists()
