"""An empty AWS account inside this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from moto import mock_aws
from ray.autoscaler._private.aws import config as ray_aws
from ray.autoscaler._private.aws import node_provider as ray_aws_nodes
from ray.autoscaler._private.aws import utils as ray_aws_utils

instance_types = cache(ray_aws_nodes.list_ec2_instances)
"""The list that Ray gets from AWS, cached: it is the same for all tests, and takes seconds each time."""


@contextmanager
def empty_account(home: Path) -> Iterator[None]:
    """An empty AWS account inside this process, for the block, and a home folder for the key that Ray makes."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(home))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            patch.setenv(name, "testing")
        patch.delenv("AWS_PROFILE", raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setattr(ray_aws.time, "sleep", lambda seconds: None)
        patch.setattr(ray_aws_nodes, "list_ec2_instances", instance_types)
        for cached in (ray_aws._get_subnets_or_die, ray_aws_utils.resource_cache, ray_aws_utils.client_cache):
            cached.cache_clear()
        yield


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[None]:
    with empty_account(tmp_path):
        yield


@pytest.fixture(scope="module")
def kept_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One account for all tests of a module."""
    with empty_account(tmp_path_factory.mktemp("home")):
        yield
