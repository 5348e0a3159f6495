"""The private parts of Ray that kdray uses exist and are unchanged. A new version of Ray fails here first."""

import inspect
import sys
from pathlib import Path

import pytest
import ray
from ray._private import worker as ray_worker
from ray._private.state import GlobalState
from ray._raylet import AuthenticationMode, get_authentication_mode
from ray.train.torch import TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.tune.execution.tune_controller import TuneController
from ray.tune.execution.tune_controller import _ObjectCache as ActorCache

from kdray.slots.ray_internals import (
    NodeNetworkConfig,
    SlotTrainer,
    address_to_join,
    is_retryable,
    is_start_timeout,
    job_config,
    print_no_worker_logs,
    refresh_authentication,
)


def test_the_global_node_knows_whether_it_is_the_head_and_its_session_folder() -> None:
    assert hasattr(ray_worker, "_global_node")
    node = ray._private.node.Node
    assert "self.head = " in inspect.getsource(node.__init__)
    assert callable(node.get_session_dir_path)


def test_printing_of_worker_logs_can_be_switched_off() -> None:
    before = ray_worker._worker_logs_enabled
    try:
        print_no_worker_logs()
        assert ray_worker._worker_logs_enabled is False
    finally:
        ray_worker._worker_logs_enabled = before


def test_ray_reads_the_mode_of_authentication_again(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    for mode in ("token", "disabled"):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        refresh_authentication()
        modes.append(get_authentication_mode())
    monkeypatch.undo()
    refresh_authentication()
    assert modes == [AuthenticationMode.TOKEN, AuthenticationMode.DISABLED]


@pytest.mark.parametrize(
    ("address", "environment", "expected"),
    [
        ("local", "10.0.0.1:6379", None),
        ("10.0.0.2:6379", "10.0.0.1:6379", "10.0.0.2:6379"),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "10.0.0.1:6379", "10.0.0.1:6379"),
        (None, "local", None),
    ],
)
def test_the_address_that_ray_joins_is_known_before_it_joins(
    address: str | None, environment: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", environment)
    assert address_to_join(address) == expected


def test_the_global_state_gives_the_cluster_config_and_the_draining_nodes() -> None:
    assert callable(GlobalState.get_cluster_config)
    assert callable(GlobalState.get_draining_nodes)


def test_the_controller_calls_its_callbacks_when_it_starts() -> None:
    assert list(inspect.signature(ControllerCallback.after_controller_start).parameters) == [
        "self",
        "train_run_context",
    ]


def test_a_trainer_lists_its_callbacks_and_the_one_for_ray_data_is_known_by_name() -> None:
    assert "self" in inspect.signature(TorchTrainer._create_default_callbacks).parameters
    assert DatasetsCallback.__name__ == "DatasetsCallback"
    assert issubclass(SlotTrainer, TorchTrainer)


def test_the_torch_backend_is_started_with_a_worker_group() -> None:
    assert list(inspect.signature(_TorchBackend.on_start).parameters)[:3] == ["self", "worker_group", "backend_config"]
    assert issubclass(NodeNetworkConfig(backend="gloo").backend_cls, _TorchBackend)


def test_tune_keeps_idle_actors_in_a_cache_that_can_grow() -> None:
    assert "_actor_cache" in inspect.getsource(TuneController)
    assert callable(ActorCache.increase_max)


class ControllerFailure(Exception):
    """An error as Ray Train raises it, with the error that ended its controller."""

    def __init__(self, controller_failure: Exception) -> None:
        self.controller_failure = controller_failure


@pytest.mark.parametrize("wrap", [lambda error: error, ControllerFailure])
def test_timeouts_startup_failures_and_ray_errors_are_retryable(wrap: type[Exception]) -> None:
    late = wrap(WorkerGroupStartupTimeoutError(1))  # type: ignore[arg-type]
    failed = wrap(WorkerGroupStartupFailedError("no room"))
    assert (is_start_timeout(late), is_retryable(late)) == (True, True)
    assert (is_start_timeout(failed), is_retryable(failed)) == (False, True)
    assert is_retryable(wrap(ray.exceptions.RayError("its node died")))
    assert not is_retryable(wrap(ValueError("a bug in kdray")))


def test_workers_import_from_the_folders_of_the_driver_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray adds the working directory, and the script's folder, unless a job has a working directory of its own."""
    source = inspect.getsource(ray_worker.connect)
    assert source.count("job_config._runtime_env_has_working_dir()") == 2
    assert "job_config._py_driver_sys_path.extend(code_paths)" in source
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin" / "kdray")])
    for path, expected in (
        (["/usr/lib"], []),
        ([str(tmp_path / "bin")], [str(tmp_path / "bin")]),
        ([""], [str(tmp_path)]),
        ([str(tmp_path / "bin"), str(tmp_path)], [str(tmp_path / "bin"), str(tmp_path)]),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(sys, "path", path)
            job = job_config()
        assert job is not None
        assert job._py_driver_sys_path == expected
        assert job._runtime_env_has_working_dir()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert job_config() is None
