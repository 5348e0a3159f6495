"""deploy/onprem.yaml on three hosts: what works, who is refused, and the effect of a lost host, session or head.

All tests use one cluster, in the order of this file. The test in which the head dies is the last one.
"""

import logging
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.cluster.hosts import Machine, Network
from tests.cluster.onprem import LAPTOP, Cluster, wait_for
from tests.faults.sweep_process import without_clock_metrics

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("reconnect_hosts")]
log = logging.getLogger(__name__)

LONG = ("--set", "training.epochs=60")
"""Options for trials that take many seconds, so that a fault can happen while they run."""


def set_options(name: str, *changes: str) -> list[str]:
    """The --set options for a sweep with this name and these settings."""
    return [argument for change in (f"name={name}", *changes) for argument in ("--set", change)]


def can_connect(machine: Machine, address: str, port: int) -> bool:
    """Whether a process accepts a connection to this address from this machine."""
    return machine.run(["bash", "-c", f": </dev/tcp/{address}/{port}"]).returncode == 0


def test_the_quickstart_runs_on_all_hosts(cluster: Cluster) -> None:
    start = time.monotonic()
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
    log.info("the quickstart took %.0f s; trials per host: %s", time.monotonic() - start, dict(hosts))


def test_kdray_show_and_a_ray_job_from_the_laptop(cluster: Cluster, script: Path) -> None:
    assert "★" in cluster.exec_("kdray show $KDRAY_STORAGE/quickstart")
    laptop = cluster.network.laptop
    forwarding = subprocess.Popen(laptop.command(["ray", "dashboard", str(cluster.file)], LAPTOP))
    try:
        wait_for(lambda: can_connect(laptop, "127.0.0.1", 8265), "the dashboard's port on the laptop", 60)
        jobs = [
            "ray",
            "job",
            "submit",
            "--address",
            "http://127.0.0.1:8265",
            "--working-dir",
            str(script.parent / "job"),
        ]
        (script.parent / "job").mkdir()
        (script.parent / "job" / script.name).write_text(script.read_text())
        sweep = ["python", script.name, "--trials", "1", *set_options("job")]
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


def test_access_needs_the_token_and_ports_are_on_the_loopback_interface(cluster: Cluster) -> None:
    laptop, head, worker = cluster.network.laptop, cluster.head, cluster.workers[0]
    status = ["ray", "status", "--address", f"{head.address}:6379"]
    assert laptop.run(status, 60, LAPTOP).returncode == 0
    for wrong in ({**LAPTOP, "RAY_AUTH_TOKEN": "wrong" * 8}, {**LAPTOP, "RAY_AUTH_MODE": "disabled"}):
        refused = laptop.run(status, 120, wrong)
        assert refused.returncode != 0
        assert "oken" in refused.stdout, refused.stdout[-2000:]
    for port in (5000, 8265):
        assert can_connect(head, "127.0.0.1", port)
        assert not any(can_connect(machine, head.address, port) for machine in (laptop, worker, head))
    for host in cluster.hosts:
        assert cluster.on_head("stat -c %a ~/.ray/auth_token", machine=host).strip() == "600"


def test_workers_on_two_hosts_give_the_results_of_workers_on_one_host(cluster: Cluster, script: Path) -> None:
    both = ("slots.count=1", "slots.workers=2")
    cluster.submit(script, "--trials", "2", *set_options("apart", *both, "slots.cpus=1")).end()
    cluster.submit(script, "--trials", "2", *set_options("together", *both, "slots.cpus=0.5")).end()
    apart, together = cluster.records("apart"), cluster.records("together")
    assert all(len(record.host.split(", ")) == 2 for record in apart), [record.host for record in apart]
    assert all(len(record.host.split(", ")) == 1 for record in together), [record.host for record in together]
    assert without_clock_metrics(apart) == without_clock_metrics(together)
    assert len(apart) == 2


def test_a_sweep_outlives_the_session_that_submitted_it(cluster: Cluster, script: Path) -> None:
    cluster.submit(script, *set_options("tmux"), *LONG, options=("--tmux",)).end(limit_s=120)
    wait_for(lambda: cluster.records("tmux"), "the first trial")
    for machine, process in ((cluster.network.laptop, "ssh"), (cluster.head, "sshd: root@")):
        machine.run(["pkill", "-KILL", "-f", process])
    wait_for(lambda: (cluster.network.shared / "tmux" / "choice.json").exists(), "the sweep's end")
    assert [record.state for record in cluster.records("tmux")] == ["completed"] * 6
    cluster.on_head("tmux kill-server")


def test_a_host_that_is_disconnected_for_five_seconds_costs_nothing(cluster: Cluster, script: Path) -> None:
    run = cluster.submit(script, *set_options("cut"), *LONG)
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


def test_the_slots_of_a_lost_host_move_and_a_late_host_is_used(cluster: Cluster, script: Path) -> None:
    run = cluster.submit(script, *set_options("gone"), *LONG)
    trial = cluster.trial_on("gone", *cluster.workers)
    gone = cluster.network.machines[trial.host]
    cluster.network.cut_off(gone)
    run.end()
    records = cluster.records("gone")
    assert [record.state for record in records] == ["completed"] * 6
    assert (records[trial.number].host != gone.name, records[trial.number].attempts) == (True, 2)
    assert [[metrics["epoch"] for metrics in record.history] for record in records] == [list(range(1, 61))] * 6

    cluster.await_nodes(*(host for host in cluster.hosts if host is not gone))
    run = cluster.submit(script, "--trials", "1000", *set_options("late"))
    wait_for(
        lambda: any(record.state == "completed" for record in cluster.records("late")), "trials without the late host"
    )
    assert gone.name not in {record.host for record in cluster.records("late")}
    cluster.network.reconnect(gone)
    wait_for(lambda: gone.name in {record.host for record in cluster.records("late")}, "a trial on the late host")
    cluster.on_head("pkill -INT -f name=late")
    run.end(expected=1)  # `ray submit` ends with 1 for every exit code of the script but 0
    assert "Interrupted; nothing is lost" in run.output
    cluster.await_nodes(*cluster.hosts)


def test_when_the_head_dies_another_head_continues_from_the_storage(
    cluster: Cluster, network: Network, script: Path
) -> None:
    run = cluster.submit(script, *set_options("head"), *LONG)
    wait_for(lambda: any(record.state == "completed" for record in cluster.records("head")), "a finished trial")
    before = [record for record in cluster.records("head") if record.state == "completed"]
    cluster.head.die()
    assert run.process.wait(120) != 0
    another = Cluster.on(network, head=2, workers=[3])
    another.up()
    another.await_nodes(*another.hosts)
    another.submit(script, *set_options("head"), *LONG).end()
    records = another.records("head")
    assert [record.state for record in records] == ["completed"] * 6
    assert without_clock_metrics([records[record.number] for record in before]) == without_clock_metrics(before)
    assert [records[record.number].attempts for record in before] == [record.attempts for record in before]
    assert [[metrics["epoch"] for metrics in record.history] for record in records] == [list(range(1, 61))] * 6
    # The MLflow of the dead head is lost. The new one has all trials, because the ledger has them.
    trials = [run["tags"]["kdray.trial"] for run in another.runs("head") if "kdray.trial" in run["tags"]]
    assert sorted(trials) == [str(number) for number in range(6)]

    another.down()
    for host in another.hosts:
        wait_for(lambda host=host: not host.processes(), f"no process left on {host.name}", 240, pause_s=2)
