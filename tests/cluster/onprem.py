"""deploy/onprem.yaml for the hosts of a test, and Ray's commands for it, which are run on the laptop.

The text of the file is used. Only its five EDITs are replaced, and `ray start` gets one CPU and 200 MB on each host,
because all hosts share two cores. The hosts cannot download packages. So a stand-in for the program `uv` makes an
environment of the packages that run the tests, with kdray from the folder that `ray up` has copied.
"""

import json
import re
import shlex
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdray.errors import KDRayError
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.ledger import Ledger
from kdray.storage.paths import SweepPaths
from tests.cluster.hosts import CHECKOUT, Machine, Network

LIMIT_S = 900
"""Enough for a sweep on three hosts that share two cores with other programs."""

LAPTOP = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}

UV = """#!/bin/bash
set -e
case $1 in
--version) echo uv {version} ;;
venv) {python} -m venv --without-pip "${{@: -1}}" ;;
pip)
    environment=~/.kdray/venv
    printf '%s\\n' "${{@: -1}}" {packages} > $(echo $environment/lib/python3.*/site-packages)/here.pth
    for script in ray kdray mlflow; do
        sed "1s|.*|#!$environment/bin/python|" {scripts}/$script > $environment/bin/$script
        chmod +x $environment/bin/$script
    done ;;
esac
"""


def onprem_yaml(network: Network, head: int, workers: list[int]) -> Path:
    """deploy/onprem.yaml for these hosts."""
    text = (CHECKOUT / "deploy" / "onprem.yaml").read_text()
    edits = [
        ("EDIT-head", f"10.77.0.{head}"),
        ("[EDIT-worker, EDIT-worker]", str([f"10.77.0.{worker}" for worker in workers])),
        ("EDIT-user", "root"),
        ("~/.ssh/EDIT-key", str(network.key)),
        ("/EDIT-shared/kdray", str(network.shared)),
    ]
    for placeholder, value in edits:
        assert text.count(placeholder) == 1, f"deploy/onprem.yaml has no {placeholder!r} to edit"
        text = text.replace(placeholder, value)
    assert text.count("ray start ") == 2
    text = text.replace("ray start ", "ray start --num-cpus=1 --object-store-memory=200000000 ")
    file = network.folder / f"head-{head}.yaml"
    file.write_text(text)
    return file


def install_uv(machine: Machine) -> None:
    """Write the stand-in for uv where deploy/node.sh looks for it."""
    version = re.search(r"^UV=(\S+)", (CHECKOUT / "deploy" / "node.sh").read_text(), re.MULTILINE)
    assert version
    uv = machine.folder / "home" / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    paths = {"packages": sysconfig.get_path("purelib"), "scripts": sysconfig.get_path("scripts")}
    uv.write_text(UV.format(version=version[1], python=sys.executable, **paths))
    uv.chmod(0o755)


def wait_for(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S, pause_s: float = 0.2) -> Any:
    """Wait until the condition gives a true value, and return that value. Fails after `limit_s`."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(pause_s)
    raise AssertionError(f"not within {limit_s} s: {what}")


@dataclass
class Submission:
    """A `ray submit` that runs on the laptop."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, expected: int = 0, limit_s: float = LIMIT_S) -> str:
        """Wait until it ends, and check its exit code. Returns its output."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {limit_s} s:\n{self.output[-8000:]}") from None
        assert code == expected, self.output[-8000:]
        return self.output


@dataclass
class Cluster:
    """A cluster that `ray up` makes of hosts of a network."""

    network: Network
    head: Machine
    workers: list[Machine]
    file: Path
    submitted: int = 0

    @classmethod
    def on(cls, network: Network, head: int, workers: list[int]) -> "Cluster":
        """The cluster of these hosts, before `ray up`."""
        return cls(
            network=network,
            head=network.machines[f"h{head}"],
            workers=[network.machines[f"h{number}"] for number in workers],
            file=onprem_yaml(network, head, workers),
        )

    @property
    def hosts(self) -> list[Machine]:
        return [self.head, *self.workers]

    def ray(self, *arguments: str, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
        """Run one of Ray's commands on the laptop."""
        return self.network.laptop.run(["ray", *arguments], limit_s, LAPTOP)

    def up(self) -> None:
        """Run `ray up`, after making a token if there is none."""
        token = "test -e ~/.ray/auth_token || ray get-auth-token --generate > /dev/null; chmod 600 ~/.ray/auth_token"
        assert self.network.laptop.run(["bash", "-c", token]).returncode == 0
        done = self.ray("up", "--yes", str(self.file))
        assert done.returncode == 0, done.stdout[-8000:]

    def down(self) -> None:
        done = self.ray("down", "--yes", str(self.file))
        assert done.returncode == 0, done.stdout[-8000:]

    def submit(self, script: Path | str, *arguments: str, options: tuple[str, ...] = ()) -> Submission:
        """Start `ray submit` in the background."""
        command = ["ray", "submit", *options, str(self.file), str(script), "--", *arguments]
        self.submitted += 1
        log = self.network.folder / f"{self.file.stem}-submit-{self.submitted}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.network.laptop.command(command, LAPTOP), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        return Submission(process, log)

    def exec_(self, command: str, limit_s: float = LIMIT_S) -> str:
        """Run a command on the head with `ray exec`. Returns its output."""
        done = self.ray("exec", str(self.file), command, limit_s=limit_s)
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout

    def on_head(self, command: str, limit_s: float = 120, machine: Machine | None = None) -> str:
        """Run a command in the environment of the head, or of another host, without Ray and SSH. Returns its output."""
        shell = ["bash", "-c", f". ~/.kdray/env.sh; {command}"]
        done = (machine or self.head).run(shell, limit_s)
        assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}"
        return done.stdout

    def records(self, sweep: str) -> list[TrialRecord]:
        """The trials in the sweep's ledger now."""
        try:
            return Ledger.read(SweepPaths(self.network.shared, sweep).journal, sweep).records()
        except (KDRayError, OSError):
            return []

    def trial_on(self, sweep: str, *hosts: Machine) -> TrialRecord:
        """Wait for a running trial on one of these hosts."""
        names = {host.name for host in hosts}
        return wait_for(
            lambda: next(
                (each for each in self.records(sweep) if each.state == "running" and each.host in names), None
            ),
            f"a trial of {sweep} on {names}",
        )

    def runs(self, sweep: str) -> list[dict[str, Any]]:
        """The runs of a sweep in the MLflow server on the head: status, tags and metrics of each run."""
        experiments = self._mlflow("experiments/search", {"max_results": 100})["experiments"]
        query = {
            "experiment_ids": [experiment["experiment_id"] for experiment in experiments],
            "filter": f"tags.`kdray.sweep` = '{sweep}'",
            "max_results": 1000,
        }
        runs = []
        for run in self._mlflow("runs/search", query).get("runs", []):
            data = run["data"]
            tags = {tag["key"]: tag["value"] for tag in data["tags"]}
            metrics = {metric["key"]: metric["value"] for metric in data.get("metrics", [])}
            runs.append({"status": run["info"]["status"], "tags": tags, "metrics": metrics})
        return runs

    def _mlflow(self, endpoint: str, query: dict[str, Any]) -> Any:
        request = f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(query))}"
        return json.loads(self.on_head(f"curl -sf -X POST $MLFLOW_TRACKING_URI/api/2.0/mlflow/{endpoint} {request}"))

    def nodes(self) -> set[str]:
        """The addresses of the nodes that Ray has now."""
        output = self.on_head(f"python -c {shlex.quote(NODES)}")
        return set(output.strip().splitlines()[-1].split()[1:])

    def await_nodes(self, *hosts: Machine, limit_s: float = 240) -> None:
        """Wait until Ray has exactly these nodes."""
        addresses = {host.address for host in hosts}
        wait_for(lambda: self.nodes() == addresses, f"nodes {sorted(addresses)}", limit_s, pause_s=2)


NODES = """
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo
nodes = GcsClient(address="127.0.0.1:6379").get_all_node_info()
alive = GcsNodeInfo.GcsNodeState.ALIVE
print("nodes", *(node.node_manager_address for node in nodes.values() if node.state == alive))
"""
