"""Makes the resources of cluster.yaml in an AWS account: the nodes' security group, their roles, and the bucket.

    python deploy/aws_account.py --region eu-central-1 --ssh-from 203.0.113.7/32 --bucket my-team-kdray

Prints the lines to write into cluster.yaml. A second run changes only what differs: a new --ssh-from replaces the old
one. The script starts no instance; `ray up` does. It uses the credentials of boto3 (`aws configure`), which must be
allowed to make roles. Users who only run clusters need no such permission, but they must be allowed to pass the two
roles to instances.

Nodes may read and write one folder of the bucket. The head may start instances that have the tag of its cluster, the
role of the workers and the cluster's group. It may change and end instances with this tag only, no other ones of the
account.
"""

import argparse
import ipaddress
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import boto3
from botocore.exceptions import ClientError

CLUSTER = "kdray"
"""The cluster_name of cluster.yaml, and the name of the security group."""
FOLDER = "kdray"
"""The folder of the bucket in which sweeps and MLflow write."""
CLUSTER_TAG = "ray-cluster-name"
"""The tag by which Ray recognises the instances of a cluster. Its value is the cluster_name."""

MOST_ADDRESSES = 2**16
"""The largest IPv4 network that is accepted. A company's network is smaller, so a larger one is probably a mistake."""


def allowed_network(text: str) -> str:
    """The network that may reach the nodes by SSH. Raises ValueError if it is invalid or too large."""
    given = ipaddress.ip_network(text)
    if (given.num_addresses > MOST_ADDRESSES and given.version == 4) or (given.version == 6 and given.prefixlen < 48):
        raise ValueError(
            f"{text} would let {given.num_addresses:,} addresses try to log in; give your own network, such as "
            "203.0.113.7/32, at most a /16 (a /48 of IPv6)"
        )
    return str(given)


def ssh_rule(cidr: str) -> dict[str, Any]:
    """The rule that allows SSH from one network, in EC2's form."""
    ranges = {"Ipv6Ranges": [{"CidrIpv6": cidr}]} if ":" in cidr else {"IpRanges": [{"CidrIp": cidr}]}
    return {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, **ranges}


def make_security_group(ec2: Any, name: str, cidr: str) -> str:
    """Make or update the group of all nodes: SSH from `cidr`, traffic between nodes, nothing else. Returns its id."""
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise SystemExit("This region has no default VPC; make one with: aws ec2 create-default-vpc")
    vpc = vpcs[0]["VpcId"]
    filters = [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc]}]
    existing = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    group_id = existing[0]["GroupId"] if existing else _new_group(ec2, name, vpc)
    rules = existing[0]["IpPermissions"] if existing else []
    # Rules that were added by hand are removed as well.
    stale_rules = [rule for rule in rules if not _is_between_nodes(rule, group_id)]
    if stale_rules:
        ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=stale_rules)
    between_nodes = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}
    missing_rules = [ssh_rule(cidr)] if len(rules) > len(stale_rules) else [ssh_rule(cidr), between_nodes]
    ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=missing_rules)
    return str(group_id)


def _is_between_nodes(rule: dict[str, Any], group_id: str) -> bool:
    """Whether this rule allows traffic between the nodes only. It is never removed: a running cluster needs it."""
    other_sources = rule["IpRanges"] or rule["Ipv6Ranges"] or rule["PrefixListIds"]
    return not other_sources and [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [group_id]


def _new_group(ec2: Any, name: str, vpc: str) -> str:
    answer = ec2.create_security_group(
        GroupName=name, Description="kdray: SSH from one network, all between the nodes", VpcId=vpc
    )
    return str(answer["GroupId"])


def make_bucket(s3: Any, name: str, region: str) -> None:
    """Make the bucket, closed to the public, if it does not exist."""
    try:
        s3.head_bucket(Bucket=name)
        return
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise SystemExit(f"The bucket {name} cannot be used, maybe it is someone else's: {error}") from None
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=name, **where)
    closed = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=closed)


def bucket_statements(bucket: str, folder: str) -> list[dict[str, Any]]:
    """The permissions to list, read and write this folder of the bucket, and to ask for the bucket's region."""
    arn = f"arn:aws:s3:::{bucket}"
    in_folder = {"StringLike": {"s3:prefix": [folder, f"{folder}/*"]}}
    on_files = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    return [
        _allow("s3:ListBucket", arn, in_folder),
        _allow("s3:GetBucketLocation", arn),
        _allow(on_files, f"{arn}/{folder}/*"),
    ]


def head_statements(cluster: str, worker_role: str, group_id: str) -> list[dict[str, Any]]:
    """The permissions of the autoscaler: start workers of its own cluster, and change and end instances of it.

    Ray gives each instance the cluster's tag in the request that starts it. CreateTags is allowed in that request, and
    on instances that have the tag already, so that no other instance can be made one of the cluster.
    """
    ec2, instances = "arn:aws:ec2:*:*", "arn:aws:ec2:*:*:instance/*"
    # A region's images have no account in their ARN.
    parts = [f"{ec2}:{kind}/*" for kind in ("network-interface", "subnet", "volume", "spot-instances-request")]
    parts += ["arn:aws:ec2:*::image/*", f"{ec2}:key-pair/*", f"{ec2}:security-group/{group_id}"]
    profile = worker_role.replace(":role/", ":instance-profile/")
    with_tag = {
        "StringEquals": {f"aws:RequestTag/{CLUSTER_TAG}": cluster},
        "ArnEquals": {"ec2:InstanceProfile": profile},
    }
    has_tag = {"StringEquals": {f"aws:ResourceTag/{CLUSTER_TAG}": cluster}}
    ending = ["ec2:TerminateInstances", "ec2:StopInstances", "ec2:StartInstances", "ec2:CreateTags"]
    return [
        _allow("ec2:Describe*", "*"),
        _allow("ec2:RunInstances", instances, with_tag),
        _allow("ec2:RunInstances", parts),
        _allow("ec2:CreateTags", instances, {"StringEquals": {"ec2:CreateAction": "RunInstances"}}),
        _allow(ending, instances, has_tag),
        _allow(["ssm:GetParameters", "ssm:GetParameter"], "arn:aws:ssm:*::parameter/aws/service/*"),
        _allow("iam:PassRole", worker_role, {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}),
    ]


def make_role(iam: Any, name: str) -> str:
    """Make the role of this name and its instance profile, if they do not exist. Returns the role's ARN."""
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    _ignore_existing(
        iam.create_role, RoleName=name, AssumeRolePolicyDocument=json.dumps(_policy([trust])), Description="kdray nodes"
    )
    _ignore_existing(iam.create_instance_profile, InstanceProfileName=name)
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return str(iam.get_role(RoleName=name)["Role"]["Arn"])


def make_roles(iam: Any, cluster: str, on_bucket: list[dict[str, Any]], group_id: str) -> None:
    """Make the roles of the head and the workers, and the role that spot instances need in every account."""
    worker_role = make_role(iam, f"{cluster}-worker")
    make_role(iam, f"{cluster}-head")
    policies = {"worker": on_bucket, "head": on_bucket + head_statements(cluster, worker_role, group_id)}
    for kind, statements in policies.items():
        iam.put_role_policy(
            RoleName=f"{cluster}-{kind}", PolicyName="kdray", PolicyDocument=json.dumps(_policy(statements))
        )
    _ignore_existing(iam.create_service_linked_role, AWSServiceName="spot.amazonaws.com")


def _allow(
    actions: str | list[str], resources: str | list[str], condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    statement: dict[str, Any] = {"Effect": "Allow", "Action": actions, "Resource": resources}
    return statement | ({"Condition": condition} if condition else {})


def _policy(statements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": statements}


def _ignore_existing(make: Callable[..., Any], **names: str) -> None:
    """Call `make`, and ignore the two errors by which IAM says that the name exists already."""
    try:
        make(**names)
    except ClientError as error:
        is_taken = "has been taken" in str(error)
        if error.response["Error"]["Code"] != "EntityAlreadyExists" and not is_taken:
            raise


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line. Exits with 2 if the network or a name is invalid."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--region", required=True, help="for example eu-central-1")
    parser.add_argument(
        "--ssh-from", required=True, metavar="CIDR", help="the network that may reach the nodes: 203.0.113.7/32"
    )
    parser.add_argument("--bucket", required=True, help="where sweeps write; made if it does not exist")
    parser.add_argument("--folder", default=FOLDER, help="the folder of the bucket that nodes may use")
    parser.add_argument("--cluster", default=CLUSTER, help="the cluster_name of the cluster's file")
    options = parser.parse_args(arguments)
    for option in ("folder", "cluster"):
        # A name with * or ? would match other folders and clusters.
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", getattr(options, option), re.ASCII):
            parser.error(f"--{option}: {getattr(options, option)!r} must have letters, digits, '.', '_' and '-' only.")
    try:
        options.ssh_from = allowed_network(options.ssh_from)
    except ValueError as error:
        parser.error(f"--ssh-from: {error}.")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Make all resources, and print the lines for cluster.yaml."""
    options = parse_arguments(arguments)
    session = boto3.Session(region_name=options.region)
    make_bucket(session.client("s3"), options.bucket, options.region)
    group_id = make_security_group(session.client("ec2"), options.cluster, options.ssh_from)
    on_bucket = bucket_statements(options.bucket, options.folder)
    make_roles(session.client("iam"), options.cluster, on_bucket, group_id)
    sys.stdout.write(
        f"Ready: SSH from {options.ssh_from} only. Lines of cluster.yaml:\n"
        f"  region: {options.region}\n"
        f"        - {group_id}\n"
        f"  - bash ~/kdray-src/deploy/node.sh s3://{options.bucket}/{options.folder} aws\n"
    )
    if options.cluster != CLUSTER:
        sys.stdout.write(
            f"Also write {options.cluster} instead of {CLUSTER} in cluster_name and in the two IamInstanceProfile.\n"
        )


if __name__ == "__main__":
    main()
