"""A real Slurm of one node, private to the tests: own ports, own keys, own folder; nothing of the machine's is touched.

It needs the programs of Slurm and munge (Debian: slurm-wlm, munge) and a user who may start slurmd, which is root.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmdParameters=config_overrides
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
PlugStackConfig={root}/plugstack.conf
MpiDefault=none
SwitchType=switch/none
TaskPlugin=task/none
ProctrackType=proctrack/linuxproc
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1,sched_min_interval=0
GresTypes=gpu
KillWait=5
JobRequeue=1
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=20000 Gres=gpu:2
PartitionName=tests Nodes={host} Default=YES State=UP
"""
"""Four processors and two GPUs that only the scheduler believes in; a requeued job waits 5 s, not the usual 120."""


def missing() -> str:
    """Why there can be no Slurm here, or an empty string."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if lacking:
        return f"Slurm is not installed (no {', '.join(lacking)}); on Debian: apt-get install slurm-wlm munge"
    return "" if os.getuid() == 0 else "slurmd must be started by root"


@contextmanager
def one_node_slurm(root: Path) -> Iterator[Path]:
    """Start munged, slurmctld and slurmd in `root`; yields the slurm.conf to put into SLURM_CONF."""
    conf = _write_configuration(root)
    environment = {**os.environ, "SLURM_CONF": str(conf), "PATH": _path()}
    munge = ["munged", "--foreground", "--force", f"--socket={root}/munge.socket", f"--key-file={root}/munge.key"]
    munge += [f"--pid-file={root}/munged.pid", f"--log-file={root}/munged.log", f"--seed-file={root}/munge.seed"]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (munge, ["slurmctld", "-D", "-i"], ["slurmd", "-D"]):
            with (root / f"{command[0]}.out").open("wb") as out:
                daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
            if command is munge:
                _wait(lambda: (root / "munge.socket").exists(), root, daemons)
        _wait(lambda: "idle" in _ask(environment, "sinfo", "-h", "-o", "%T"), root, daemons)
        yield conf
    finally:
        _ask(environment, "scancel", "--user", _user(), "--signal=KILL", "--full")
        _ask(environment, "scancel", "--user", _user())
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _write_configuration(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    (root / "munge.key").write_bytes(os.urandom(128))
    (root / "munge.key").chmod(0o600)
    (root / "plugstack.conf").write_text("")
    (root / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null,/dev/zero\n")
    for name in ("state", "spool"):
        (root / name).mkdir(exist_ok=True)
    conf = root / "slurm.conf"
    conf.write_text(CONF.format(host=socket.gethostname().split(".")[0], user=_user(), root=root, ports=_free_ports()))
    return conf


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _wait(ready: Callable[[], bool], root: Path, daemons: list[subprocess.Popen[bytes]], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end or any(daemon.poll() is not None for daemon in daemons):
            logs = [f"{path.name}:\n{path.read_text()[-2000:]}" for path in root.glob("*.[lo][ou]*")]
            raise RuntimeError("\n".join(["Slurm does not start.", *logs]))
        time.sleep(0.1)


def _ask(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30).stdout


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _path() -> str:
    """The daemons are where only root looks."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
