"""The cluster files, without a cluster: what they open, what they install, and what happens if nothing is filled in.

`ray up` is never run. What each cloud makes of its file: test_deploy_clouds.py; Kubernetes and the team's MLflow:
test_deploy_kubernetes.py; the guide's commands: test_guide.py.
"""

import json
import os
import re
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.deploy.cluster_files import RAYJOB, ROOT, assert_shell, loaded, pins, program, rayjob, run_script, text

CLOUDS = ["cluster.yaml", "deploy/gcp.yaml"]
CLUSTERS = [*CLOUDS, "deploy/onprem.yaml"]
EDITABLE = [*CLUSTERS, RAYJOB]
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy").rglob("*.sh"))


@pytest.mark.parametrize("name", EDITABLE)
def test_at_most_five_lines_are_to_be_filled_in_and_each_is_marked(name: str):
    marked = [line for line in text(name).splitlines() if "# EDIT" in line]
    placeholders = [line for line in text(name).splitlines() if "EDIT" in line.partition("#")[0]]
    assert 1 <= len(marked) <= 5
    assert placeholders == marked


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_ray_asks_for_the_token_and_the_token_travels(name: str):
    config = loaded(name)
    starts = [
        command
        for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start " in start for start in starts)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", CLUSTERS)
def test_nothing_is_served_beyond_loopback_and_nothing_opened_to_the_world(name: str):
    config = loaded(name)
    (start,) = (command for command in config["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in text(name)
    assert "security_group" not in config["provider"]  # Ray would add a rule for SSH from everywhere
    assert "--host 127.0.0.1" in text("deploy/mlflow.sh")


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_takes_no_slots_and_idle_workers_end(name: str):
    config = loaded(name)
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
    assert 0 < config["idle_timeout_minutes"] <= 30
    assert config["available_node_types"]["gpu"]["min_workers"] == 0


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_mounts_are_what_the_package_is_built_of_and_no_more(name: str):
    mounts = {remote: local for remote, local in loaded(name)["file_mounts"].items() if "kdray-src" in remote}
    assert all((ROOT / local).exists() and remote == f"~/kdray-src/{local}" for remote, local in mounts.items())
    assert {"pyproject.toml", "README.md", "kdray", "deploy", "sweeps"} == set(mounts.values())
    excluded = {pattern.removeprefix("**/") for pattern in loaded(name)["rsync_exclude"]}
    assert {".venv", ".git", "results", "__pycache__"} <= excluded


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_commands_are_shell(name: str):
    config = loaded(name)
    for commands_ in (value for key, value in config.items() if key.endswith("_commands")):
        for command in commands_:
            assert_shell(command)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_shell(name: str):
    assert_shell(text(name))


# --- versions ---


def test_what_is_pinned_is_what_the_project_allows():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    pinned = pins()
    for line in [*project["dependencies"], *extras["aws"], *extras["gcp"], *extras["postgresql"]]:
        needed = Requirement(line)
        assert pinned[needed.name] in needed.specifier, line


def test_every_node_gets_the_same_python_uv_and_ray():
    node, image = text("deploy/node.sh"), text("deploy/Dockerfile")
    python, uv = (re.search(rf"^{name}=(.*)$", node, re.MULTILINE) for name in ("PYTHON", "UV"))
    assert python
    assert uv
    assert f"FROM python:{python[1]}-slim" in image
    assert f"astral-sh/uv:{uv[1]} " in image
    assert f"FROM python:{python[1]}-slim" in text("deploy/mlflow/Dockerfile")
    assert f"mlflow[auth]=={pins()['mlflow']}" in text("deploy/mlflow/Dockerfile")
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == pins()["ray"]
    assert f"kdray:{tomllib.loads(text('pyproject.toml'))['project']['version']}" in json.dumps(rayjob())


def test_the_image_runs_as_nobody_special_and_takes_only_what_it_needs():
    image = text("deploy/Dockerfile")
    assert image.rindex("USER ray") > image.rindex("RUN ")
    assert "--constraint constraints.txt" in image
    assert text("deploy/Dockerfile.dockerignore").splitlines()[1] == "*"


# --- what a node runs ---


@pytest.fixture
def node(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose uv only writes down what it is asked for."""
    home, programs = tmp_path / "home", tmp_path / "programs"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("secret")
    (home / ".ray" / "auth_token").chmod(0o644)
    program(home / ".kdray" / "venv" / "bin" / "python", "echo installed")
    program(programs / "uv", '[ "$1" = --version ] && echo "uv 0.13.9" && exit', f'echo "$@" >>{tmp_path}/asked')
    return {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}"}


def in_login_shell(node: dict[str, str], expression: str) -> str:
    """What `ray submit` would see."""
    shell = ["bash", "--login", "-c", "-i", f"source ~/.bashrc; echo {expression}"]
    ran = subprocess.run(
        shell, env=node, capture_output=True, text=True, timeout=30, check=True, start_new_session=True
    )
    return ran.stdout.strip()


def test_a_node_installs_the_pinned_versions_and_the_torch_that_fits(node: dict[str, str], tmp_path: Path):
    assert run_script("deploy/node.sh", "s3://mine/kdray", "aws", **node).returncode == 0
    venv, install = (tmp_path / "asked").read_text().splitlines()
    assert "--managed-python --python 3.11" in venv
    assert "--torch-backend auto" in install
    assert f"--constraint {ROOT}/deploy/constraints.txt" in install
    assert install.endswith(f"--reinstall-package kdray {ROOT}[aws]")
    assert (Path(node["HOME"]) / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_login_shells_find_kdray_the_storage_and_the_token(node: dict[str, str]):
    for _ in range(2):
        run_script("deploy/node.sh", "s3://mine/kdray", "aws", **node)
    assert in_login_shell(node, "$KDRAY_STORAGE $RAY_AUTH_MODE") == "s3://mine/kdray token"
    assert in_login_shell(node, "$PATH").count(".kdray/venv/bin") == 1
    assert (Path(node["HOME"]) / ".bashrc").read_text().count("env.sh") == 1


def test_only_the_head_is_told_of_mlflow(node: dict[str, str]):
    run_script("deploy/node.sh", "s3://mine/kdray", **node)
    assert in_login_shell(node, "$MLFLOW_TRACKING_URI") == ""
    (Path(node["HOME"]) / "ray_bootstrap_config.yaml").touch()
    assert in_login_shell(node, "$MLFLOW_TRACKING_URI") == "http://127.0.0.1:5000"


@pytest.mark.parametrize("storage", ["s3://EDIT-bucket/kdray", "results", "s3://"])
def test_a_node_refuses_a_storage_that_is_none(node: dict[str, str], storage: str):
    refused = run_script("deploy/node.sh", storage, **node)
    assert (refused.returncode, storage in refused.stderr) == (2, True)


def test_a_node_without_a_token_is_refused(node: dict[str, str]):
    (Path(node["HOME"]) / ".ray" / "auth_token").unlink()
    refused = run_script("deploy/node.sh", "s3://mine/kdray", **node)
    assert refused.returncode == 2
    assert "ray get-auth-token --generate" in refused.stderr


def test_mlflow_is_started_once_on_loopback_with_its_files_in_the_storage(node: dict[str, str], tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program(
        tmp_path / "programs" / "mlflow",
        f'echo "$@" >>{tmp_path}/mlflow; echo $$ >{tmp_path}/pid; cd {tmp_path} && touch health',
        f"exec python3 -m http.server {port} --bind 127.0.0.1",
    )
    environment = node | {"KDRAY_STORAGE": "s3://mine/kdray", "KDRAY_MLFLOW_PORT": str(port)}
    try:
        ran = [run_script("deploy/mlflow.sh", **environment) for _ in range(2)]
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)
    assert ["started" in ran[0].stdout, "answers" in ran[1].stdout] == [True, True]
    (asked,) = (tmp_path / "mlflow").read_text().splitlines()
    assert f"server --host 127.0.0.1 --port {port}" in asked
    assert asked.endswith("--artifacts-destination s3://mine/kdray/mlartifacts")
