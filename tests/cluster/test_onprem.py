"""deploy/onprem.yaml on three hosts: what works, who is refused, and what a host or a session that goes away costs.

One cluster for all of them, in this order; the head's death comes last.
"""

import logging
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.cluster.hosts import Machine, Network
from tests.cluster.onprem import LAPTOP, Cluster, until
from tests.faults.sweep_process import numbers

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("plugs")]
log = logging.getLogger(__name__)

LONG = ("--set", "training.epochs=60")
"""Trials of many seconds, so that something can happen in their middle."""


def named(name: str, *changes: str) -> list[str]:
    """The command line of a sweep of this name, with these settings."""
    return [argument for change in (f"name={name}", *changes) for argument in ("--set", change)]


def answers(there: Machine, address: str, port: int) -> bool:
    """Whether something takes a connection to this address, from there."""
    return there.run(["bash", "-c", f": </dev/tcp/{address}/{port}"]).returncode == 0


def test_the_quickstart_runs_on_all_hosts(cluster: Cluster) -> None:
    begun = time.monotonic()
    cluster.submit("sweeps/quickstart.py", "--trials", "8", "--require-cluster").end()
    runs = cluster.runs("quickstart")
    (sweep,) = (run for run in runs if "kdray.trial" not in run["tags"])
    assert sweep["status"] == "FINISHED"
    trials = [run for run in runs if run["tags"].get("kdray.role") == "search"]
    assert sorted(int(run["tags"]["kdray.trial"]) for run in trials) == list(range(8))
    assert {run["status"] for run in trials} <= {"FINISHED", "KILLED"}
    hosts = Counter(run["tags"]["kdray.host"] for run in trials)
    assert len(hosts) >= 2
    assert set(hosts) <= {"h1", "h2", "h3"}
    assert {"model.safetensors", "config.json"} <= {
        path.name for path in (cluster.network.shared / "quickstart" / "chosen").iterdir()
    }
    log.info("the quickstart took %.0f s; trials per host: %s", time.monotonic() - begun, dict(hosts))


def test_kdray_show_and_a_ray_job_from_the_laptop(cluster: Cluster, night: Path) -> None:
    assert "★" in cluster.exec_("kdray show $KDRAY_STORAGE/quickstart")
    laptop = cluster.network.laptop
    forwarding = subprocess.Popen(laptop.command(["ray", "dashboard", str(cluster.file)], LAPTOP))
    try:
        until(lambda: answers(laptop, "127.0.0.1", 8265), "the dashboard's port on the laptop", 60)
        jobs = [
            "ray",
            "job",
            "submit",
            "--address",
            "http://127.0.0.1:8265",
            "--working-dir",
            str(night.parent / "job"),
        ]
        (night.parent / "job").mkdir()
        (night.parent / "job" / night.name).write_text(night.read_text())
        sweep = ["python", night.name, "--trials", "1", *named("job")]
        done = laptop.run([*jobs, "--", *sweep], 900, LAPTOP)
        assert done.returncode == 0, done.stdout[-8000:]
        assert "succeeded" in done.stdout
        for wrong in ({**LAPTOP, "RAY_AUTH_TOKEN": "wrong" * 8}, {**LAPTOP, "RAY_AUTH_MODE": "disabled"}):
            refused = laptop.run([*jobs, "--", "true"], 120, wrong)
            assert refused.returncode != 0
    finally:
        laptop.run(["pkill", "-f", "ray dashboard"])
        forwarding.wait(30)
    assert [record.state for record in cluster.records("job")] == ["completed"]


def test_only_who_has_the_token_and_only_on_loopback(cluster: Cluster) -> None:
    laptop, head, worker = cluster.network.laptop, cluster.head, cluster.workers[0]
    status = ["ray", "status", "--address", f"{head.address}:6379"]
    assert laptop.run(status, 60, LAPTOP).returncode == 0
    for wrong in ({**LAPTOP, "RAY_AUTH_TOKEN": "wrong" * 8}, {**LAPTOP, "RAY_AUTH_MODE": "disabled"}):
        refused = laptop.run(status, 120, wrong)
        assert refused.returncode != 0
        assert "oken" in refused.stdout, refused.stdout[-2000:]
    for port in (5000, 8265):
        assert answers(head, "127.0.0.1", port)
        assert not any(answers(there, head.address, port) for there in (laptop, worker, head))
    for host in cluster.hosts:
        assert cluster.on_head("stat -c %a ~/.ray/auth_token", machine=host).strip() == "600"


def test_two_workers_on_two_hosts_give_the_numbers_of_one(cluster: Cluster, night: Path) -> None:
    both = ("slots.count=1", "slots.workers=2")
    cluster.submit(night, "--trials", "2", *named("apart", *both, "slots.cpus=1")).end()
    cluster.submit(night, "--trials", "2", *named("together", *both, "slots.cpus=0.5")).end()
    apart, together = cluster.records("apart"), cluster.records("together")
    assert all(len(record.host.split(", ")) == 2 for record in apart), [record.host for record in apart]
    assert all(len(record.host.split(", ")) == 1 for record in together), [record.host for record in together]
    assert numbers(apart) == numbers(together)
    assert len(apart) == 2


def test_a_sweep_outlives_the_session_that_submitted_it(cluster: Cluster, night: Path) -> None:
    cluster.submit(night, *named("tmux"), *LONG, options=("--tmux",)).end(limit_s=120)
    until(lambda: cluster.records("tmux"), "the first trial")
    for there, session in ((cluster.network.laptop, "ssh"), (cluster.head, "sshd: root@")):
        there.run(["pkill", "-KILL", "-f", session])
    until(lambda: (cluster.network.shared / "tmux" / "choice.json").exists(), "the sweep's end")
    assert [record.state for record in cluster.records("tmux")] == ["completed"] * 6
    cluster.on_head("tmux kill-server")


def test_a_host_that_is_cut_off_for_five_seconds_costs_nothing(cluster: Cluster, night: Path) -> None:
    run = cluster.submit(night, *named("cut"), *LONG)
    trial = cluster.trial_on("cut", *cluster.workers)
    host = cluster.network.machines[trial.host]
    cluster.network.cut_off(host)
    time.sleep(5)
    cluster.network.reconnect(host)
    run.end()
    records = cluster.records("cut")
    assert [(record.state, record.attempts, record.error) for record in records] == [("completed", 1, None)] * 6
    assert [[metrics["epoch"] for metrics in record.history] for record in records] == [list(range(1, 61))] * 6
    assert records[trial.number].host == host.name


def test_the_slots_of_a_host_that_is_gone_move_and_one_that_comes_later_is_used(cluster: Cluster, night: Path) -> None:
    run = cluster.submit(night, *named("gone"), *LONG)
    trial = cluster.trial_on("gone", *cluster.workers)
    gone = cluster.network.machines[trial.host]
    cluster.network.cut_off(gone)
    run.end()
    records = cluster.records("gone")
    assert [record.state for record in records] == ["completed"] * 6
    assert (records[trial.number].host != gone.name, records[trial.number].attempts) == (True, 2)
    assert [[metrics["epoch"] for metrics in record.history] for record in records] == [list(range(1, 61))] * 6

    cluster.await_nodes(*(host for host in cluster.hosts if host is not gone))
    run = cluster.submit(night, "--trials", "1000", *named("late"))
    until(
        lambda: any(record.state == "completed" for record in cluster.records("late")), "trials without the late host"
    )
    assert gone.name not in {record.host for record in cluster.records("late")}
    cluster.network.reconnect(gone)
    until(lambda: gone.name in {record.host for record in cluster.records("late")}, "a trial on the late host")
    cluster.on_head("pkill -INT -f name=late")
    run.end(expected=1)  # ray submit's, whatever the script's
    assert "Interrupted; nothing is lost" in run.said
    cluster.await_nodes(*cluster.hosts)


def test_when_the_head_dies_another_goes_on_from_the_storage(cluster: Cluster, network: Network, night: Path) -> None:
    run = cluster.submit(night, *named("head"), *LONG)
    until(lambda: any(record.state == "completed" for record in cluster.records("head")), "a finished trial")
    before = [record for record in cluster.records("head") if record.state == "completed"]
    cluster.head.die()
    assert run.process.wait(120) != 0
    another = Cluster.on(network, head=2, workers=[3])
    another.up()
    another.await_nodes(*another.hosts)
    another.submit(night, *named("head"), *LONG).end()
    records = another.records("head")
    assert [record.state for record in records] == ["completed"] * 6
    assert numbers([records[record.number] for record in before]) == numbers(before)
    assert [records[record.number].attempts for record in before] == [record.attempts for record in before]
    assert [[metrics["epoch"] for metrics in record.history] for record in records] == [list(range(1, 61))] * 6
    told = [run["tags"]["kdray.trial"] for run in another.runs("head") if "kdray.trial" in run["tags"]]
    assert sorted(told) == [str(number) for number in range(6)]  # the dead head's MLflow is lost; this one has it all

    another.down()
    for host in another.hosts:
        until(lambda host=host: not host.processes(), f"no process left on {host.name}", 240, pause_s=2)
