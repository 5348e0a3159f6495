"""Makes the resources of cluster.yaml in an AWS account: the nodes' security group, their roles, and the bucket.

    python deploy/aws_account.py --region eu-central-1 --ssh-from 203.0.113.7/32 --bucket my-team-kdray

Prints the lines to write into cluster.yaml. A second run changes only what differs: a new --ssh-from replaces the old
one. The script starts no instance; `ray up` does. It uses the credentials of boto3 (`aws configure`), which must be
allowed to make roles. Users who only run clusters need no such permission, but they must be allowed to pass the two
roles to instances.
"""

import argparse
import ipaddress
import json
import sys
from typing import Any

import boto3
from botocore.exceptions import ClientError

GROUP = "kdray"
HEAD, WORKER = "kdray-head", "kdray-worker"

MOST_ADDRESSES = 2**16
"""The largest IPv4 network that is accepted. A company's network is smaller, so a larger one is probably a mistake."""


def network(text: str) -> str:
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


def security_group(ec2: Any, cidr: str) -> str:
    """Make or update the group of all nodes: SSH from `cidr`, traffic between nodes, nothing else. Returns its id."""
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise SystemExit("This region has no default VPC; make one with: aws ec2 create-default-vpc")
    vpc = vpcs[0]["VpcId"]
    filters = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [vpc]}]
    found = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    group = found[0]["GroupId"] if found else _new_group(ec2, vpc)
    rules = found[0]["IpPermissions"] if found else []
    stale = [rule for rule in rules if not _among(rule, group)]  # also rules that were added by hand
    if stale:
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=stale)
    among = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    missing = [ssh_rule(cidr)] if len(rules) > len(stale) else [ssh_rule(cidr), among]
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=missing)
    return str(group)


def _among(rule: dict[str, Any], group: str) -> bool:
    """Whether this rule allows traffic between the nodes only. It is never removed: a running cluster needs it."""
    others = rule["IpRanges"] or rule["Ipv6Ranges"] or rule["PrefixListIds"]
    return not others and [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [group]


def _new_group(ec2: Any, vpc: str) -> str:
    made = ec2.create_security_group(
        GroupName=GROUP, Description="kdray: SSH from one network, all among the nodes", VpcId=vpc
    )
    return str(made["GroupId"])


def bucket(s3: Any, name: str, region: str) -> None:
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


def bucket_statements(name: str) -> list[dict[str, Any]]:
    """The permissions to read and write this bucket."""
    files = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    return [
        {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation"], "Resource": f"arn:aws:s3:::{name}"},
        {"Effect": "Allow", "Action": files, "Resource": f"arn:aws:s3:::{name}/*"},
    ]


def head_statements(worker_role: str) -> list[dict[str, Any]]:
    """The permissions of the autoscaler: start instances with the workers' role, and end those that have Ray's tag."""
    ours = {"StringLike": {"ec2:ResourceTag/ray-cluster-name": "*"}}
    ending = ["ec2:TerminateInstances", "ec2:StopInstances", "ec2:StartInstances"]
    images = ["arn:aws:ssm:*::parameter/aws/service/*"]
    return [
        {"Effect": "Allow", "Action": ["ec2:Describe*", "ec2:RunInstances", "ec2:CreateTags"], "Resource": "*"},
        {"Effect": "Allow", "Action": ending, "Resource": "*", "Condition": ours},
        {"Effect": "Allow", "Action": ["ssm:GetParameters", "ssm:GetParameter"], "Resource": images},
        {"Effect": "Allow", "Action": "iam:PassRole", "Resource": worker_role},
    ]


def role(iam: Any, name: str) -> str:
    """Make the role of this name and its instance profile, if they do not exist. Returns the role's ARN."""
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    _unless_there(
        iam.create_role, RoleName=name, AssumeRolePolicyDocument=json.dumps(_policy([trust])), Description="kdray nodes"
    )
    _unless_there(iam.create_instance_profile, InstanceProfileName=name)
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return str(iam.get_role(RoleName=name)["Role"]["Arn"])


def roles(iam: Any, bucket_name: str) -> None:
    """Make the roles of the head and the workers, and the role that spot instances need in every account."""
    allowed = bucket_statements(bucket_name)
    worker = role(iam, WORKER)
    role(iam, HEAD)
    for name, statements in ((WORKER, allowed), (HEAD, allowed + head_statements(worker))):
        iam.put_role_policy(RoleName=name, PolicyName="kdray", PolicyDocument=json.dumps(_policy(statements)))
    _unless_there(iam.create_service_linked_role, AWSServiceName="spot.amazonaws.com")


def _policy(statements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": statements}


def _unless_there(make: Any, **what: str) -> None:
    """Call `make`, and ignore the two errors by which IAM says that the name exists already."""
    try:
        make(**what)
    except ClientError as error:
        taken = "has been taken" in str(error)
        if error.response["Error"]["Code"] != "EntityAlreadyExists" and not taken:
            raise


def main(arguments: list[str] | None = None) -> None:
    """Make all resources, and print the lines for cluster.yaml."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--region", required=True, help="for example eu-central-1")
    parser.add_argument(
        "--ssh-from", required=True, metavar="CIDR", help="the network that may reach the nodes: 203.0.113.7/32"
    )
    parser.add_argument("--bucket", required=True, help="where sweeps write; made if it does not exist")
    asked = parser.parse_args(arguments)
    try:
        cidr = network(asked.ssh_from)
    except ValueError as error:
        parser.error(f"--ssh-from: {error}.")
    session = boto3.Session(region_name=asked.region)
    bucket(session.client("s3"), asked.bucket, asked.region)
    roles(session.client("iam"), asked.bucket)
    group = security_group(session.client("ec2"), cidr)
    sys.stdout.write(
        f"Ready: SSH from {cidr} only. Lines of cluster.yaml:\n"
        f"  region: {asked.region}\n"
        f"        - {group}\n"
        f"  - bash ~/kdray-src/deploy/node.sh s3://{asked.bucket}/kdray aws\n"
    )


if __name__ == "__main__":
    main()
