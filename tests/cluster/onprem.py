"""deploy/onprem.yaml for the hosts of a test, and Ray's own commands on it, given on the laptop.

The file is used as it is, as text. Replaced are the five lines that a user edits, and what this machine lacks: its
hosts have no network to install from, so that the environment's two commands give way to the programs and packages that
run the tests (kdray itself still comes from the file's file_mounts); and each host takes one CPU and 200 MB, for they
share two cores.
"""

import re
import sys
from pathlib import Path

from cluster.hosts import CHECKOUT, Network

ENVIRONMENT = {
    "test -x ~/kdray-env/bin/python || python3 -m venv ~/kdray-env": f"ln -sfn {sys.prefix} ~/kdray-env",
    "~/kdray-env/bin/pip install --quiet ~/kdray": "test -d ~/kdray/kdray",
    "PATH=$HOME/kdray-env/bin:$PATH": "PATH=$HOME/kdray-env/bin:$PATH PYTHONPATH=$HOME/kdray",
    "ray start ": "ray start --num-cpus=1 --object-store-memory=200000000 ",
}
LAPTOP = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


def onprem_yaml(network: Network, head: int, workers: list[int]) -> Path:
    """deploy/onprem.yaml for these hosts."""
    text = (CHECKOUT / "deploy" / "onprem.yaml").read_text()
    edits = {
        "head_ip": f"10.77.0.{head}",
        "worker_ips": "[" + ", ".join(f"10.77.0.{worker}" for worker in workers) + "]",
        "ssh_user": "root",
        "ssh_private_key": str(network.key),
    }
    for name, value in edits.items():
        text, count = re.subn(rf"( {name}:) .*? (# EDIT)", rf"\1 {value} \2", text)
        assert count == 1, f"deploy/onprem.yaml has no line {name!r} to edit"
    text, count = re.subn(r"KDRAY_STORAGE=\S+ (.*# EDIT)", rf"KDRAY_STORAGE={network.shared} \1", text)
    assert count == 1, "deploy/onprem.yaml has no line KDRAY_STORAGE to edit"
    for here, instead in ENVIRONMENT.items():
        assert here in text, f"deploy/onprem.yaml says no more {here!r}"
        text = text.replace(here, instead)
    file = network.folder / f"onprem-{head}.yaml"
    file.write_text(text)
    return file
