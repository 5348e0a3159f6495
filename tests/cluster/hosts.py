"""Machines for cluster tests: Linux namespaces, each with its own network, processes, /tmp, home folder and sshd.

All machines are connected to one bridge in the network namespace of the machine `laptop`. So the network of the real
machine is not touched, two test runs do not disturb each other, and no packet leaves. The machines end with the process
that made them, even if it is killed: the kernel kills all processes of a namespace whose first process dies. This
module knows nothing about Ray.
"""

import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

CHECKOUT = Path(__file__).resolve().parents[2]
HOME = Path(pwd.getpwuid(0).pw_dir)
PACKAGES = {"sshd": "openssh-server", "ssh": "openssh-client", "ip": "iproute2", "rsync": "rsync", "tmux": "tmux"}
"""Program -> the Debian package it is in."""
SEARCHED = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FOLDERS = Path("/var/tmp")
PREFIX = "kdray-hosts-"
MASKED = (HOME, Path("/tmp"))
"""Folders of which each machine has its own. Folders below them that all machines need are mounted into them."""

BASHRC = '[ -z "$PS1" ] && return\n'
PROFILE = 'if [ -n "$BASH_VERSION" ] && [ -f ~/.bashrc ]; then . ~/.bashrc; fi\n'
SSHD = """\
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PidFile none
"""


def explain_unavailable() -> str:
    """Why these machines cannot be made here; empty if they can. Installs missing Debian packages first."""
    if os.geteuid() != 0:
        return "hosts are made as network namespaces, which needs root"
    absent = {program: package for program, package in PACKAGES.items() if shutil.which(program, path=SEARCHED) is None}
    if absent and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "--no-install-recommends", *absent.values()]
        for command in (["apt-get", "update"], install):
            subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    still_absent = sorted(
        package for program, package in absent.items() if shutil.which(program, path=SEARCHED) is None
    )
    if still_absent:
        return f"these Debian packages are missing and could not be installed: {', '.join(still_absent)}"
    trial = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, text=True, check=False)
    return f"namespaces cannot be made here: {trial.stderr.strip()}" if trial.returncode else ""


NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")


@dataclass
class Machine:
    """A machine. `pid` is the id of its first process on the real machine."""

    name: str
    address: str
    folder: Path
    process: subprocess.Popen[bytes]
    pid: int

    def command(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
        """The command line that runs a command on this machine, in the checkout, without this process's environment."""
        own = {"HOME": str(HOME), "PATH": SEARCHED, "LANG": "C.UTF-8", "USER": "root", "TERM": "dumb"}
        variables = [f"{name}={value}" for name, value in {**own, **(environment or {})}.items()]
        enter = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--uts", "--ipc"]
        return [*enter, f"--wd={CHECKOUT}", "env", "-i", *variables, *command]

    def run(
        self, command: Sequence[str], limit_s: float = 60, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this machine. Standard output and standard error come as one text."""
        return subprocess.run(
            self.command(command, environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def processes(self) -> list[str]:
        """The command lines of all processes of this machine, without its first process, sshd."""
        listed = subprocess.run(
            self.command(["ps", "-eo", "pid=,ppid=,stat=,args="]), capture_output=True, text=True, check=True
        ).stdout.splitlines()
        rows = [line.split(maxsplit=3) for line in listed]
        return [args for pid, _, stat, args in rows if pid != "1" and stat[0] != "Z" and not args.startswith("ps -eo")]

    def die(self) -> None:
        """Kill this machine at once, as a power failure does."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # its other processes, and `unshare`, which waits for it, end too
        self.process.wait(timeout=30)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


class Network:
    """A laptop and hosts on one bridge; all have the folder `shared`, the checkout and the real machine's programs."""

    def __init__(self) -> None:
        remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(dir=FOLDERS, prefix=f"{PREFIX}{os.getpid()}-"))
        self.shared = self.folder / "shared"
        self.shared.mkdir()
        self.key = self.folder / "key"
        _keygen(self.key)
        self.machines: dict[str, Machine] = {}
        self.laptop = self._machine("laptop", "10.77.0.254", "exec sleep infinity")
        self._ip("link add bridge type bridge", "address add 10.77.0.254/24 dev bridge", "link set bridge up")

    def host(self, number: int) -> Machine:
        """Start a host with the address 10.77.0.NUMBER. A host that died starts again with an empty disk."""
        name = f"h{number}"
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _keygen(folder / "host_key")
        shutil.copy(f"{self.key}.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(SSHD.format(folder=folder))
        machine = self._machine(name, f"10.77.0.{number}", f"exec {_which('sshd')} -D -e -f {folder}/sshd_config")
        self._ip(
            f"link add {name} type veth peer name eth0 netns {machine.pid}",
            f"link set {name} master bridge up",
        )
        _ip(machine.pid, f"address add {machine.address}/24 dev eth0", "link set eth0 up")
        _ip(machine.pid, f"route add default via {self.laptop.address}")
        return machine

    def cut_off(self, machine: Machine) -> None:
        """Disconnect a machine from the bridge: packets are lost without an error."""
        self._ip(f"link set {machine.name} down")

    def reconnect(self, machine: Machine) -> None:
        """Connect a machine to the bridge again."""
        self._ip(f"link set {machine.name} up")

    def close(self) -> None:
        """Kill all machines, and delete their folders."""
        for machine in self.machines.values():
            machine.die()
        _remove(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _machine(self, name: str, address: str, first: str) -> Machine:
        """Start a machine; `first` is the command of its first process."""
        if name in self.machines:
            self.machines[name].die()
        folder = self.folder / name
        home, tmp = folder / "home", folder / "tmp"
        home.mkdir(parents=True)
        tmp.mkdir(mode=0o1777)
        (home / ".bashrc").write_text(BASHRC)
        (home / ".profile").write_text(PROFILE)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")  # as Debian's installer writes it
        (folder / "setup").write_text("\n".join([*_setup(name, folder), first, ""]))
        with (folder / "console.log").open("ab") as console:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "bash", "-e", str(folder / "setup")],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self.machines[name] = Machine(name, address, folder, process, _first_process(process, folder))
        return self.machines[name]

    def _ip(self, *commands: str) -> None:
        _ip(self.laptop.pid, *commands)


def remove_leftovers() -> None:
    """Delete the folders of test runs that were killed. Their machines died with them."""
    for folder in FOLDERS.glob(f"{PREFIX}*"):
        if not Path("/proc", folder.name.removeprefix(PREFIX).split("-")[0]).exists():
            _remove(folder)


def _setup(name: str, folder: Path) -> list[str]:
    """The commands that a machine runs before its first process: they mount its own folders."""
    lines = [f"hostname {name}"]
    for masked, own in zip(MASKED, (folder / "home", folder / "tmp"), strict=True):
        for needed in (CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)):
            if needed.is_relative_to(masked):
                target = shlex.quote(str(own / needed.relative_to(masked)))
                lines += [f"mkdir -p {target}", f"mount --bind {shlex.quote(str(needed))} {target}"]
        lines.append(f"mount --rbind {own} {masked}")
    lines += ["mount -t tmpfs tmpfs /run", "mkdir /run/sshd", "mount -t tmpfs tmpfs /dev/shm"]
    return [*lines, f"mount --bind {folder}/hosts /etc/hosts", f"{_which('ip')} link set lo up", f"touch {folder}/up"]


def _first_process(process: subprocess.Popen[bytes], folder: Path, limit_s: float = 30) -> int:
    """Wait until a machine is set up. Returns the process id of its first process."""
    end = time.monotonic() + limit_s
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (folder / "up").exists():
        assert process.poll() is None, (folder / "console.log").read_text()
        assert time.monotonic() < end, f"{folder.name} was not up within {limit_s} s"
        time.sleep(0.05)
    return int(children.read_text().split()[0])


def _ip(pid: int, *commands: str) -> None:
    for command in commands:
        enter = ["nsenter", "--target", str(pid), "--net"]
        done = subprocess.run([*enter, _which("ip"), *command.split()], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {command}: {done.stderr}"


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kdray", "-f", str(path)], check=True)


def _which(program: str) -> str:
    found = shutil.which(program, path=SEARCHED)
    assert found, f"{program} is not installed"
    return found


def _remove(folder: Path) -> None:
    """Delete a network's folder. Nothing is mounted below it: mounts end with their namespace."""
    shutil.rmtree(folder, ignore_errors=True)
