"""What the nodes on AWS may do: the policies of deploy/aws_account.py, and the requests that Ray and kdray make.

The simulated AWS checks no conditions of policies, so `is_allowed` does, for the kinds of conditions that are used.
"""

import contextlib
import io
from fnmatch import fnmatchcase
from typing import Any

import boto3
import pytest
import s3fs
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from kdray.storage.bucket import check_bucket
from kdray.storage.files import replace_folder, write_json
from kdray.storage.mirror import delete, fetch, fetch_files, list_bucket
from kdray.storage.owner import own_sweep
from kdray.storage.paths import sweep_paths
from tests.deploy.cluster_files import (
    AWS_REGION,
    USER_NETWORK,
    account_script,
    fill_in,
    make_account,
    run_account_script,
)

Policy = list[dict[str, Any]]

INSTANCE = "arn:aws:ec2:eu-central-1:123456789012:instance/i-0123456789abcdef0"
OWN, OTHER = {"aws:ResourceTag/ray-cluster-name": "kdray"}, {"aws:ResourceTag/ray-cluster-name": "neighbour"}


def is_allowed(policy: Policy, action: str, resource: str, context: dict[str, str] | None = None) -> bool:
    """Whether one of the statements allows the action on the resource, in a request with these values."""
    return any(
        matches(statement["Action"], action)
        and matches(statement["Resource"], resource)
        and all(
            key in (context or {}) and holds(kind, values, (context or {})[key])
            for kind, pairs in statement.get("Condition", {}).items()
            for key, values in pairs.items()
        )
        for statement in policy
    )


def matches(patterns: str | list[str], text: str) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))


def holds(kind: str, values: str | list[str], value: str) -> bool:
    wanted = [values] if isinstance(values, str) else values
    return {"StringEquals": value in wanted, "ArnEquals": value in wanted, "StringLike": matches(wanted, value)}[kind]


@pytest.fixture(scope="module")
def lines(kept_aws: None) -> list[str]:
    """The lines that the script prints for cluster.yaml."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        run_account_script("--region", AWS_REGION, "--ssh-from", USER_NETWORK, "--bucket", "mine")
    return output.getvalue().splitlines()[1:]


@pytest.fixture(scope="module")
def policies(lines: list[str]) -> dict[str, Policy]:
    """The statements of the head's and the workers' policies."""
    return {name: policy_of(f"kdray-{name}") for name in ("head", "worker")}


S3_ACTIONS = {
    "list_objects_v2": "s3:ListBucket",
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
}
"""The permission that each request needs. Another request fails the test: it may need a permission that is missing."""


def policy_of(role: str) -> Policy:
    document = boto3.client("iam").get_role_policy(RoleName=role, PolicyName="kdray")["PolicyDocument"]
    statements: Policy = document["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return statements


@pytest.mark.parametrize("action", ["TerminateInstances", "StopInstances", "StartInstances", "CreateTags"])
def test_the_head_may_touch_only_instances_of_its_own_cluster(policies: dict[str, Policy], action: str) -> None:
    head = policies["head"]
    assert is_allowed(head, f"ec2:{action}", INSTANCE, OWN)
    assert not is_allowed(head, f"ec2:{action}", INSTANCE, OTHER)
    assert not is_allowed(head, f"ec2:{action}", INSTANCE, {})
    assert not is_allowed(policies["worker"], f"ec2:{action}", INSTANCE, OWN)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"aws:RequestTag/ray-cluster-name": "neighbour"}, False),
        ({"ec2:InstanceProfile": "arn:aws:iam::123456789012:instance-profile/administrator"}, False),
    ],
)
def test_the_head_may_start_workers_of_its_own_cluster_only(
    policies: dict[str, Policy], changed: dict[str, str], expected: bool
) -> None:
    request = {
        "aws:RequestTag/ray-cluster-name": "kdray",
        "ec2:InstanceProfile": "arn:aws:iam::123456789012:instance-profile/kdray-worker",
    }
    assert is_allowed(policies["head"], "ec2:RunInstances", INSTANCE, request | changed) is expected
    assert not is_allowed(policies["head"], "ec2:RunInstances", INSTANCE, {})


def test_the_head_may_use_no_other_security_group_and_pass_no_other_role(policies: dict[str, Policy]) -> None:
    groups = boto3.client("ec2", region_name=AWS_REGION).describe_security_groups()["SecurityGroups"]
    allowed = {
        group["GroupName"]: is_allowed(
            policies["head"], "ec2:RunInstances", f"arn:aws:ec2:eu-central-1:1:security-group/{group['GroupId']}"
        )
        for group in groups
    }
    assert allowed == {"kdray": True, "default": False}
    to_ec2 = {"iam:PassedToService": "ec2.amazonaws.com"}
    roles = {name: f"arn:aws:iam::123456789012:role/kdray-{name}" for name in ("worker", "head")}
    passes = {name: is_allowed(policies["head"], "iam:PassRole", role, to_ec2) for name, role in roles.items()}
    assert passes == {"worker": True, "head": False}


def test_the_requests_of_rays_autoscaler_are_allowed(lines: list[str], policies: dict[str, Policy]) -> None:
    config = commands._bootstrap_config(fill_in(lines), no_config_cache=True)
    requests: list[dict[str, Any]] = []
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    provider.ec2_fail_fast.meta.client.meta.events.register(
        "provide-client-params.ec2.RunInstances", lambda params, **others: requests.append(params)
    )
    tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_LAUNCH_CONFIG: "0", TAG_RAY_USER_NODE_TYPE: "gpu"}
    provider.create_node(config["available_node_types"]["gpu"]["node_config"], tags, 1)
    (request,) = requests
    (at_start,) = request["TagSpecifications"]
    assert at_start["ResourceType"] == "instance"
    profile = boto3.client("iam").get_instance_profile(InstanceProfileName=request["IamInstanceProfile"]["Name"])
    context = {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in at_start["Tags"]}
    context["ec2:InstanceProfile"] = profile["InstanceProfile"]["Arn"]
    head = policies["head"]
    assert is_allowed(head, "ec2:RunInstances", INSTANCE, context)
    assert is_allowed(head, "ec2:CreateTags", INSTANCE, {"ec2:CreateAction": "RunInstances"})
    used = [f"security-group/{group}" for group in request["SecurityGroupIds"]]
    used += [f"subnet/{request['SubnetId']}", f"key-pair/{request['KeyName']}", "volume/v", "network-interface/n"]
    assert all(is_allowed(head, "ec2:RunInstances", f"arn:aws:ec2:eu-central-1:1:{each}") for each in used)
    assert is_allowed(head, "ec2:RunInstances", f"arn:aws:ec2:eu-central-1::image/{request['ImageId']}")


@pytest.mark.parametrize("name", ["head", "worker"])
def test_nodes_may_use_their_folder_of_the_bucket_only(policies: dict[str, Policy], name: str) -> None:
    policy = policies[name]
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
        assert is_allowed(policy, action, "arn:aws:s3:::mine/kdray/sst2/choice.json")
        assert not is_allowed(policy, action, "arn:aws:s3:::mine/payroll/2026.csv")
        assert not is_allowed(policy, action, "arn:aws:s3:::mine/kdray-other/x")
        assert not is_allowed(policy, action, "arn:aws:s3:::another/kdray/x")
    assert is_allowed(policy, "s3:ListBucket", "arn:aws:s3:::mine", {"s3:prefix": "kdray/sst2/"})
    assert not is_allowed(policy, "s3:ListBucket", "arn:aws:s3:::mine", {"s3:prefix": ""})
    assert not is_allowed(policy, "s3:ListBucket", "arn:aws:s3:::mine", {})
    blocked = boto3.client("s3").get_public_access_block(Bucket="mine")["PublicAccessBlockConfiguration"]
    assert all(blocked.values())


def test_kdrays_requests_to_the_bucket_need_no_right_outside_the_folder(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, folder = bucket.removeprefix("s3://").partition("/")
    policy = account_script()["bucket_statements"](name, folder)
    seen, denied = set(), []
    call = s3fs.S3FileSystem._call_s3

    async def checked_call(files: Any, method: str, *given: Any, **arguments: Any) -> Any:
        client = await files.set_session()
        sent = files._get_s3_method_kwargs(getattr(client, method), *given, **arguments)
        action, on_bucket = S3_ACTIONS[method], method == "list_objects_v2"
        seen.add(action)
        keys = [each["Key"] for each in sent.get("Delete", {}).get("Objects", [])] or [sent.get("Key")]
        arn = f"arn:aws:s3:::{sent['Bucket']}"
        for resource in [arn] if on_bucket else [f"{arn}/{key}" for key in keys]:
            if not is_allowed(policy, action, resource, {"s3:prefix": sent["Prefix"]} if on_bucket else {}):
                denied.append((method, resource, sent.get("Prefix")))
        return await call(files, method, *given, **arguments)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", checked_call)
    check_bucket(bucket)
    paths = sweep_paths(f"{bucket}/tiny")
    with own_sweep(paths.owner, pytest.fail):
        write_json(paths.choice, {"a": 1})
        with replace_folder(paths.chosen) as chosen:
            (chosen / "config.json").write_text("{}")
        fetch(paths.chosen)
        fetch_files(paths.root)
        list_bucket(paths.root)
        delete(paths.chosen)
    assert denied == []
    assert {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"} <= seen


@pytest.mark.usefixtures("aws")
def test_another_cluster_has_roles_and_a_folder_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    make_account(capsys)
    more = ["--cluster", "second", "--folder", "second"]
    run_account_script("--region", AWS_REGION, "--ssh-from", "203.0.113.7/32", "--bucket", "mine", *more)
    assert "Also write second instead of kdray" in capsys.readouterr().out
    second = policy_of("second-head")
    assert is_allowed(second, "ec2:TerminateInstances", INSTANCE, {"aws:ResourceTag/ray-cluster-name": "second"})
    assert not is_allowed(second, "ec2:TerminateInstances", INSTANCE, OWN)
    assert not is_allowed(second, "s3:GetObject", "arn:aws:s3:::mine/kdray/x")
    assert not is_allowed(policy_of("kdray-head"), "ec2:TerminateInstances", INSTANCE, OTHER)


@pytest.mark.parametrize("option", ["--cluster", "--folder"])
@pytest.mark.parametrize("name", ["*", "kdray*", "", "a?b", "../x", "a/b"])
def test_a_name_that_matches_other_names_is_refused(
    option: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boto3, "Session", lambda **options: pytest.fail("AWS is called"))
    with pytest.raises(SystemExit) as refused:
        run_account_script("--region", AWS_REGION, "--ssh-from", "203.0.113.7/32", "--bucket", "mine", option, name)
    assert refused.value.code == 2
    assert f"{option}: {name!r}" in capsys.readouterr().err
