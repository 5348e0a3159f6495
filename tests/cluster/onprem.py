"""deploy/onprem.yaml for the hosts of a test, and Ray's own commands on it, given on the laptop.

The file is used as it is, as text. Replaced are its five EDITs, and `ray start` takes one CPU and 200 MB on each host,
for they share two cores. The hosts have no network to install from: they find a program `uv` that is not uv, but makes
an environment of the packages that run the tests, with kdray from the folder that `ray up` brought.
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
"""For a sweep on three hosts that share two cores with whatever else runs."""

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
    for here, instead in edits:
        assert text.count(here) == 1, f"deploy/onprem.yaml has no {here!r} to edit"
        text = text.replace(here, instead)
    assert text.count("ray start ") == 2
    text = text.replace("ray start ", "ray start --num-cpus=1 --object-store-memory=200000000 ")
    file = network.folder / f"head-{head}.yaml"
    file.write_text(text)
    return file


def give_uv(machine: Machine) -> None:
    """Put the stand-in for uv where deploy/node.sh looks for it."""
    version = re.search(r"^UV=(\S+)", (CHECKOUT / "deploy" / "node.sh").read_text(), re.MULTILINE)
    assert version
    uv = machine.folder / "home" / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    paths = {"packages": sysconfig.get_path("purelib"), "scripts": sysconfig.get_path("scripts")}
    uv.write_text(UV.format(version=version[1], python=sys.executable, **paths))
    uv.chmod(0o755)


def until(true: Callable[[], Any], what: str, limit_s: float = LIMIT_S, pause_s: float = 0.2) -> Any:
    """The first true value; fails when there is none in time."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if value := true():
            return value
        time.sleep(pause_s)
    raise AssertionError(f"not within {limit_s} s: {what}")


@dataclass
class Submitted:
    """A `ray submit` that runs on the laptop."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, expected: int = 0, limit_s: float = LIMIT_S) -> str:
        """Wait for its end; what it said."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not at its end after {limit_s} s:\n{self.said[-8000:]}") from None
        assert code == expected, self.said[-8000:]
        return self.said


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
        """The cluster of these hosts, not up yet."""
        machines = [network.machines[f"h{number}"] for number in workers]
        return cls(network, network.machines[f"h{head}"], machines, onprem_yaml(network, head, workers))

    @property
    def hosts(self) -> list[Machine]:
        return [self.head, *self.workers]

    def ray(self, *arguments: str, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
        """Give a command of Ray's on the laptop."""
        return self.network.laptop.run(["ray", *arguments], limit_s, LAPTOP)

    def up(self) -> None:
        """`ray up`, after making a token if there is none."""
        token = "test -e ~/.ray/auth_token || ray get-auth-token --generate > /dev/null; chmod 600 ~/.ray/auth_token"
        assert self.network.laptop.run(["bash", "-c", token]).returncode == 0
        done = self.ray("up", "--yes", str(self.file))
        assert done.returncode == 0, done.stdout[-8000:]

    def down(self) -> None:
        done = self.ray("down", "--yes", str(self.file))
        assert done.returncode == 0, done.stdout[-8000:]

    def submit(self, script: Path | str, *arguments: str, options: tuple[str, ...] = ()) -> Submitted:
        """`ray submit` in the background."""
        command = ["ray", "submit", *options, str(self.file), str(script), "--", *arguments]
        self.submitted += 1
        log = self.network.folder / f"{self.file.stem}-submit-{self.submitted}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.network.laptop.command(command, LAPTOP), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        return Submitted(process, log)

    def exec_(self, command: str, limit_s: float = LIMIT_S) -> str:
        """`ray exec`: a command on the head; what it said."""
        done = self.ray("exec", str(self.file), command, limit_s=limit_s)
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout

    def on_head(self, command: str, limit_s: float = 120, machine: Machine | None = None) -> str:
        """What a command of the head's login shell, or another host's, writes; without Ray's or SSH's doing."""
        shell = ["bash", "-c", f". ~/.kdray/env.sh; {command}"]
        done = (machine or self.head).run(shell, limit_s)
        assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}"
        return done.stdout

    def records(self, sweep: str) -> list[TrialRecord]:
        """What the sweep's ledger holds now."""
        try:
            return Ledger.read(SweepPaths(self.network.shared, sweep).journal, sweep).records()
        except (KDRayError, OSError):
            return []

    def trial_on(self, sweep: str, *hosts: Machine) -> TrialRecord:
        """A trial in its middle on one of these hosts, as soon as there is one."""
        names = {host.name for host in hosts}
        return until(
            lambda: next((r for r in self.records(sweep) if r.state == "running" and r.host in names), None),
            f"a trial of {sweep} on {names}",
        )

    def runs(self, sweep: str) -> list[dict[str, Any]]:
        """The runs of a sweep that MLflow's server on the head holds: status, tags and metrics of each."""
        experiments = self._mlflow("experiments/search", {"max_results": 100})["experiments"]
        asked = {
            "experiment_ids": [experiment["experiment_id"] for experiment in experiments],
            "filter": f"tags.`kdray.sweep` = '{sweep}'",
            "max_results": 1000,
        }
        found = []
        for run in self._mlflow("runs/search", asked).get("runs", []):
            data = run["data"]
            tags = {tag["key"]: tag["value"] for tag in data["tags"]}
            metrics = {metric["key"]: metric["value"] for metric in data.get("metrics", [])}
            found.append({"status": run["info"]["status"], "tags": tags, "metrics": metrics})
        return found

    def _mlflow(self, what: str, asked: dict[str, Any]) -> Any:
        request = f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(asked))}"
        return json.loads(self.on_head(f"curl -sf -X POST $MLFLOW_TRACKING_URI/api/2.0/mlflow/{what} {request}"))

    def nodes(self) -> set[str]:
        """The addresses of the nodes that Ray has now."""
        said = self.on_head(f"python -c {shlex.quote(NODES)}")
        return set(said.strip().splitlines()[-1].split()[1:])

    def await_nodes(self, *hosts: Machine, limit_s: float = 240) -> None:
        """Wait until Ray has these nodes, and no others."""
        wanted = {host.address for host in hosts}
        until(lambda: self.nodes() == wanted, f"nodes {sorted(wanted)}", limit_s, pause_s=2)


NODES = """
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo
nodes = GcsClient(address="127.0.0.1:6379").get_all_node_info()
alive = GcsNodeInfo.GcsNodeState.ALIVE
print("nodes", *(node.node_manager_address for node in nodes.values() if node.state == alive))
"""
