"""The cluster files, without a cluster: what they open, what they install, and what happens without edits.

`ray up` is never run. The files of the clouds are tested in test_clouds.py, Kubernetes and the team's MLflow in
test_kubernetes.py, the commands of the guide in test_guide.py.
"""

import json
import os
import re
import socket
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.deploy.cluster_files import (
    RAYJOB,
    ROOT,
    assert_is_shell,
    load_yaml,
    pinned_versions,
    rayjob,
    read_text,
    run_script,
    write_program,
)

CLOUDS = ["cluster.yaml", "deploy/gcp.yaml"]
CLUSTERS = [*CLOUDS, "deploy/onprem.yaml"]
EDITABLE = [*CLUSTERS, RAYJOB]
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy").rglob("*.sh"))


@pytest.mark.parametrize("name", EDITABLE)
def test_a_user_edits_at_most_five_lines_and_each_is_marked(name: str) -> None:
    marked = [line for line in read_text(name).splitlines() if "# EDIT" in line]
    placeholders = [line for line in read_text(name).splitlines() if "EDIT" in line.partition("#")[0]]
    assert 1 <= len(marked) <= 5
    assert placeholders == marked


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_node_requires_the_token_and_gets_the_token_file(name: str) -> None:
    config = load_yaml(name)
    starts = [
        command
        for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start " in start for start in starts)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", CLUSTERS)
def test_servers_listen_on_the_loopback_interface_and_no_port_is_open_to_the_world(name: str) -> None:
    config = load_yaml(name)
    (start,) = (command for command in config["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in read_text(name)
    assert "security_group" not in config["provider"]  # Ray would open SSH to all addresses
    assert "--host 127.0.0.1" in read_text("deploy/mlflow.sh")


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_takes_no_slots_and_idle_workers_end(name: str) -> None:
    config = load_yaml(name)
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
    assert 0 < config["idle_timeout_minutes"] <= 30
    assert config["available_node_types"]["gpu"]["min_workers"] == 0


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_mounts_are_exactly_the_files_that_the_package_is_built_from(name: str) -> None:
    mounts = {remote: local for remote, local in load_yaml(name)["file_mounts"].items() if "kdray-src" in remote}
    assert all((ROOT / local).exists() and remote == f"~/kdray-src/{local}" for remote, local in mounts.items())
    assert {"pyproject.toml", "README.md", "kdray", "deploy", "sweeps"} == set(mounts.values())
    excluded = {pattern.removeprefix("**/") for pattern in load_yaml(name)["rsync_exclude"]}
    assert {".venv", ".git", "results", "__pycache__"} <= excluded


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_commands_are_valid_shell(name: str) -> None:
    config = load_yaml(name)
    for commands in (value for key, value in config.items() if key.endswith("_commands")):
        for command in commands:
            assert_is_shell(command)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_valid_shell(name: str) -> None:
    assert_is_shell(read_text(name))


# --- versions ---


def test_the_pinned_versions_satisfy_the_projects_requirements() -> None:
    project = tomllib.loads(read_text("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    versions = pinned_versions()
    for line in [*project["dependencies"], *extras["aws"], *extras["gcp"], *extras["postgresql"]]:
        needed = Requirement(line)
        assert versions[needed.name] in needed.specifier, line


@pytest.mark.parametrize("name", ["deploy/constraints.txt", "deploy/uv.txt", "deploy/mlflow/requirements.txt"])
def test_every_package_has_the_digests_of_its_files_except_torch(name: str) -> None:
    blocks = re.findall(
        r"^([\w.-]+)(?:\[[\w,]+\])?==\S+((?: \\\n +--hash=sha256:[0-9a-f]{64})*)$", read_text(name), re.MULTILINE
    )
    without = {package for package, hashes in blocks if not hashes}
    assert without == ({"torch"} if name == "deploy/constraints.txt" else set())
    lines = [line for line in read_text(name).splitlines() if not line.startswith("#")]
    assert len(lines) == len(blocks) + sum(hashes.count("--hash") for _, hashes in blocks)


def test_what_builds_kdray_is_pinned_too() -> None:
    (needed,) = tomllib.loads(read_text("pyproject.toml"))["build-system"]["requires"]
    assert pinned_versions()[Requirement(needed).name] in Requirement(needed).specifier
    for name in ("deploy/node.sh", "deploy/Dockerfile"):
        assert "--build-constraint" in read_text(name)


def test_nothing_that_is_downloaded_is_run_unchecked() -> None:
    for path in [*(ROOT / "deploy").rglob("*"), *ROOT.glob("docs/*.md"), ROOT / "cluster.yaml", ROOT / "README.md"]:
        if path.is_file() and path.suffix != ".pyc":
            assert not re.search(r"(curl|wget)[^\n]*\|\s*(sudo )?\w*sh\b", path.read_text()), path
    for name in ("deploy/Dockerfile", "deploy/mlflow/Dockerfile"):
        installs = re.findall(r"RUN pip install(?:[^\n]|\\\n)*", read_text(name))
        assert installs
        assert all("--require-hashes" in install for install in installs)


def test_the_digest_of_uv_is_the_same_for_nodes_and_for_the_image() -> None:
    digests = re.findall(r"uv_sha256=([0-9a-f]{64})", read_text("deploy/node.sh"))
    assert len(digests) == 2
    assert all(f"--hash=sha256:{digest}" in read_text("deploy/uv.txt") for digest in digests)


def test_every_node_gets_the_same_python_uv_and_ray() -> None:
    node, image = read_text("deploy/node.sh"), read_text("deploy/Dockerfile")
    python, uv = (re.search(rf"^{name}=(.*)$", node, re.MULTILINE) for name in ("PYTHON", "UV"))
    assert python
    assert uv
    assert f"PYTHON_IMAGE=python:{python[1]}-slim" in image
    assert f"\nuv=={uv[1]} " in "\n" + read_text("deploy/uv.txt")
    assert f"PYTHON_IMAGE=python:{python[1]}-slim" in read_text("deploy/mlflow/Dockerfile")
    assert pinned_versions("deploy/mlflow/requirements.txt")["mlflow"] == pinned_versions()["mlflow"]
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == pinned_versions()["ray"]
    assert f"kdray:{tomllib.loads(read_text('pyproject.toml'))['project']['version']}" in json.dumps(rayjob())


def test_the_image_does_not_run_as_root_and_contains_only_the_needed_files() -> None:
    image = read_text("deploy/Dockerfile")
    assert image.rindex("USER ray") > image.rindex("RUN ")
    assert "--constraint constraints.txt" in image
    assert "FROM ${PYTHON_IMAGE}" in image  # so that a build can name the digest
    assert read_text("deploy/Dockerfile.dockerignore").splitlines()[1] == "*"


# --- the setup of a node ---


@pytest.fixture
def node(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with a stand-in for uv, which only records its commands in a file."""
    home, programs = tmp_path / "home", tmp_path / "programs"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("secret")
    (home / ".ray" / "auth_token").chmod(0o644)
    write_program(home / ".kdray" / "venv" / "bin" / "python", "echo installed")
    write_program(
        programs / "uv", '[ "$1" = --version ] && echo "uv 0.13.9" && exit', f'echo "$@" >>{tmp_path}/commands'
    )
    return {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}"}


@pytest.fixture
def node_without_uv(node: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """A machine without uv, where curl brings a file that is not the one of PyPI; it records when it is run."""
    programs = tmp_path / "programs"
    wheel = tmp_path / "downloaded.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("uv-0.13.9.data/scripts/uv", f"#!/bin/bash\ntouch {tmp_path}/ran\necho uv 0.13.9\n")
    (programs / "uv").unlink()
    write_program(
        programs / "curl",
        f'echo "$@" >>{tmp_path}/downloads',
        'while [ "$1" != -o ]; do shift; done',
        f'cp {wheel} "$2"',
    )
    return node | {"PATH": f"{programs}:/usr/bin:/bin"}


def test_a_file_of_uv_with_another_digest_is_refused_and_not_run(
    node_without_uv: dict[str, str], tmp_path: Path
) -> None:
    refused = run_script("deploy/node.sh", "s3://mine/kdray", "aws", **node_without_uv)
    assert refused.returncode == 2
    assert "has another SHA-256" in refused.stderr
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "home" / ".kdray" / "bin").exists()
    assert "https://files.pythonhosted.org/" in (tmp_path / "downloads").read_text()


def test_the_right_file_of_uv_is_installed_once(node_without_uv: dict[str, str], tmp_path: Path) -> None:
    write_program(tmp_path / "programs" / "sha256sum", "exit 0")
    for _ in range(2):
        done = run_script("deploy/node.sh", "s3://mine/kdray", "aws", **node_without_uv)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / ".kdray" / "bin" / "uv").exists()
    assert len((tmp_path / "downloads").read_text().splitlines()) == 1


def test_a_node_reports_nothing_about_its_use_unless_a_variable_says_so(node: dict[str, str]) -> None:
    run_script("deploy/node.sh", "s3://mine/kdray", **node)
    names = "$RAY_USAGE_STATS_ENABLED $HF_HUB_DISABLE_TELEMETRY $MLFLOW_DISABLE_TELEMETRY"
    assert echo_in_login_shell(node, names) == "0 1 true"
    assert echo_in_login_shell(node | {"MLFLOW_DISABLE_TELEMETRY": "false"}, names) == "0 1 false"
    assert "RAY_USAGE_STATS_ENABLED=0 HF_HUB_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true" in read_text(
        "deploy/Dockerfile"
    )


def echo_in_login_shell(node: dict[str, str], expression: str) -> str:
    """The value of an expression in the shell that `ray submit` uses."""
    shell = ["bash", "--login", "-c", "-i", f"source ~/.bashrc; echo {expression}"]
    done = subprocess.run(
        shell, env=node, capture_output=True, text=True, timeout=30, check=True, start_new_session=True
    )
    return done.stdout.strip()


def test_a_node_installs_the_pinned_versions_and_the_torch_build_for_its_hardware(
    node: dict[str, str], tmp_path: Path
) -> None:
    assert run_script("deploy/node.sh", "s3://mine/kdray", "aws", **node).returncode == 0
    venv, install = (tmp_path / "commands").read_text().splitlines()
    assert "--managed-python --python 3.11" in venv
    assert "--torch-backend auto" in install
    assert f"--constraint {ROOT}/deploy/constraints.txt" in install
    assert install.endswith(f"--reinstall-package kdray {ROOT}[aws]")
    assert (Path(node["HOME"]) / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_login_shells_find_kdray_the_storage_and_the_token(node: dict[str, str]) -> None:
    for _ in range(2):
        run_script("deploy/node.sh", "s3://mine/kdray", "aws", **node)
    assert echo_in_login_shell(node, "$KDRAY_STORAGE $RAY_AUTH_MODE") == "s3://mine/kdray token"
    assert echo_in_login_shell(node, "$PATH").count(".kdray/venv/bin") == 1
    assert (Path(node["HOME"]) / ".bashrc").read_text().count("env.sh") == 1


def test_only_the_head_has_the_address_of_mlflow(node: dict[str, str]) -> None:
    run_script("deploy/node.sh", "s3://mine/kdray", **node)
    assert echo_in_login_shell(node, "$MLFLOW_TRACKING_URI") == ""
    (Path(node["HOME"]) / "ray_bootstrap_config.yaml").touch()
    assert echo_in_login_shell(node, "$MLFLOW_TRACKING_URI") == "http://127.0.0.1:5000"


@pytest.mark.parametrize("storage", ["s3://EDIT-bucket/kdray", "results", "s3://"])
def test_a_node_refuses_an_invalid_storage(node: dict[str, str], storage: str) -> None:
    refused = run_script("deploy/node.sh", storage, **node)
    assert (refused.returncode, storage in refused.stderr) == (2, True)


def test_a_node_without_a_token_is_refused(node: dict[str, str]) -> None:
    (Path(node["HOME"]) / ".ray" / "auth_token").unlink()
    refused = run_script("deploy/node.sh", "s3://mine/kdray", **node)
    assert refused.returncode == 2
    assert "ray get-auth-token --generate" in refused.stderr


def test_mlflow_is_started_once_on_loopback_with_its_files_in_the_storage(node: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_program(
        tmp_path / "programs" / "mlflow",
        f'echo "$MLFLOW_SERVER_ENABLE_JOB_EXECUTION $MLFLOW_DISABLE_TELEMETRY $@" >>{tmp_path}/mlflow',
        f"echo $$ >{tmp_path}/pid; cd {tmp_path} && touch health",
        f"exec python3 -m http.server {port} --bind 127.0.0.1",
    )
    environment = node | {"KDRAY_STORAGE": "s3://mine/kdray", "KDRAY_MLFLOW_PORT": str(port)}
    try:
        first, second = (run_script("deploy/mlflow.sh", **environment) for _ in range(2))
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)
    assert "started" in first.stdout
    assert "answers" in second.stdout
    (command,) = (tmp_path / "mlflow").read_text().splitlines()
    assert command.startswith(f"false true server --host 127.0.0.1 --port {port}")
    assert command.endswith("--artifacts-destination s3://mine/kdray/mlartifacts")
