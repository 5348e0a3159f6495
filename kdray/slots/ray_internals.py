"""The private parts of Ray that kdray needs. They are used in this file only, each with the reason.

Ray has no public way to do these things. `tests/slots/test_ray_internals.py` fails where a new version of Ray has
changed one of them.
"""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.services import canonicalize_bootstrap_address
from ray._private.utils import get_ray_address_file
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, without types
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import RayError
from ray.job_config import JobConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback

from kdray.slots.process_group import use_node_network

LOG_NAMES = ("ray", "ray._private")
"""The loggers of Ray in this process. `ray.init` removes the handlers of the first while it logs through the second."""

RETRYABLE = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError, RayError)
"""Errors after which the start of a slot is tried again. A RayError means that Ray Train's controller died, for example
because a worker on its node ran out of memory."""

TOKEN_PROBE_TIMEOUT_S = 5.0
"""Seconds within which a cluster answers a request."""


def is_head_of_local_ray() -> bool:
    """Whether `ray.init` started Ray in this process. Ray's public context has only the address that was joined."""
    return bool(ray._private.worker._global_node.head)


def session_folder() -> Path:
    """The folder of Ray's own logs. The public API does not name it."""
    return Path(ray._private.worker._global_node.get_session_dir_path())


def print_no_worker_logs() -> None:
    """Keep the warnings of the raylet off the screen: they are printed even with `log_to_driver=False`."""
    ray._private.worker._worker_logs_enabled = False


def address_to_join(address: str | None) -> str | None:
    """The cluster that `ray.init(address)` would join; None where it would start Ray on this machine.

    Ray decides this inside `ray.init`, but a Ray that is started here needs a private folder before that. Raises
    ConnectionError for "auto" if no cluster is found, and ValueError if the address is invalid.
    """
    found: str | None = canonicalize_bootstrap_address(address)
    return found


def address_file() -> Path:
    """The file from which Ray takes the address of a cluster if neither the call nor RAY_ADDRESS gives one."""
    return Path(get_ray_address_file(None))


def job_config() -> JobConfig | None:
    """A job whose workers import modules from the folders that this process imports from, and from no others.

    Ray would let workers import from the working directory of this process before all other places, also where this
    process does not: a stranger's unpacked folder with a `torch.py` in it would run in each worker. None, which is
    Ray's default, for a job that was submitted to a cluster with a working directory of its own.
    """
    if RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ:
        return None
    known = {os.path.abspath(each) for each in sys.path}  # the working directory may be "" there
    folders = (os.path.dirname(os.path.realpath(sys.argv[0])), os.path.abspath(os.path.curdir))
    return _JobWithoutFolders(_py_driver_sys_path=[folder for folder in folders if folder in known])


class _JobWithoutFolders(JobConfig):
    """A job to which Ray adds no folder by itself, as to one with a working directory that was submitted with it."""

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def refresh_authentication() -> None:
    """Let Ray read RAY_AUTH_MODE and the token again. It reads both once, when it is imported or first used."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def requires_token(address: str) -> bool | None:
    """Whether the cluster at `address` refuses requests without a token; None if it does not answer.

    The cluster is asked, because a process in token mode also joins a cluster that requires no token. Ray has a public
    way to ask only through the dashboard, which may not run.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True  # Ray's TLS requires a certificate of every client
    request = gcs_service_pb2.CheckAliveRequest()
    with grpc.insecure_channel(address) as channel:
        try:
            gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).CheckAlive(request, timeout=TOKEN_PROBE_TIMEOUT_S)
        except grpc.RpcError as error:
            return True if error.code() == grpc.StatusCode.UNAUTHENTICATED else None
    return False


def node_groups() -> list[tuple[dict[str, float], int]]:
    """The resources of each type of node that the autoscaler may add, and the limit of their number.

    Empty where Ray does not know the autoscaler's configuration.
    """
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return [(dict(group.resources), group.max_count) for group in groups]


def draining_nodes() -> set[str]:
    """The ids of the nodes that are being drained. Ray's public list of nodes does not contain this state."""
    return set(ray._private.state.state.get_draining_nodes())


def is_start_timeout(error: BaseException) -> bool:
    """Whether the start of a worker group failed because its resources were not available in time."""
    return any(isinstance(each, WorkerGroupStartupTimeoutError) for each in _error_and_controller_failure(error))


def is_retryable(error: BaseException) -> bool:
    """Whether the start of a worker group may succeed if it is tried again."""
    return any(isinstance(each, RETRYABLE) for each in _error_and_controller_failure(error))


def keep_one_more_actor(tune_controller: Any, resources: Any) -> None:
    """Let Ray Tune keep one more idle actor with these resources. Tune has no setting for the size of its cache."""
    tune_controller._actor_cache.increase_max(resources)


def _error_and_controller_failure(error: BaseException) -> Iterable[Any]:
    """The error and the one that ended Ray Train's controller, which Train stores in the error that it raises."""
    return error, getattr(error, "controller_failure", None)


@dataclass
class ControllerStarted(ControllerCallback):
    """Calls `register` with the actor of Ray Train's controller before its worker group starts.

    While the controller waits for resources, killing this actor is the only way to end it, and Train does not give
    access to it.
    """

    register: Callable[[Any], None]

    def after_controller_start(self, train_run_context: Any) -> None:
        """See ControllerCallback."""
        self.register(ray.get_runtime_context().current_actor)


class SlotTrainer(TorchTrainer):
    """A TorchTrainer with one more callback, and without the one that starts an actor for Ray Data.

    No slot uses Ray Data, and the actor would cost one process for each slot. Train has no option for either.
    """

    def __init__(self, callback: ControllerCallback, *arguments: Any, **options: Any) -> None:
        self._callback = callback
        super().__init__(*arguments, **options)

    def _create_default_callbacks(self) -> list[Any]:
        usual = [each for each in super()._create_default_callbacks() if type(each).__name__ != "DatasetsCallback"]
        return [*usual, self._callback]


class _NodeNetworkBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_node_network)
        super().on_start(worker_group, backend_config)


class NodeNetworkConfig(TorchConfig):
    """A TorchConfig whose gloo process group uses the network of the address that Ray uses for a node.

    The network must be set in each worker before the process group starts, and Train's public hooks run after that.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _NodeNetworkBackend
