"""Slurm for one machine: munged, slurmctld and slurmd of Debian's packages `slurm-wlm` and `munge`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
DEFAULT = Path("/etc/slurm/slurm.conf")
CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
SlurmdTimeout=20
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=here Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What keeps a cluster from being started here."""
    found = [f"no {name}" for name in NEEDED if shutil.which(name) is None]
    return found + [f"{DEFAULT} is there: another Slurm's"] * DEFAULT.exists() + ["not root"] * (os.geteuid() != 0)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Cluster:
    """As a context: started, with its environment in `environment`; stopped at the end."""

    def __init__(self, folder: Path, cores: int = 2, memory: int = 8000) -> None:
        self.folder, self.host = folder, socket.gethostname()
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        values = {"controller": free_port(), "daemon": free_port(), "user": "root", "cores": cores, "memory": memory}
        (folder / "slurm.conf").write_text(CONF.format(host=self.host, folder=folder, **values))
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)

    def __enter__(self) -> Cluster:
        own = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
        own |= {"seed-file": "munge.seed"}
        DEFAULT.symlink_to(self.folder / "slurm.conf")  # a job's own srun has no variable that says where else it is
        self.start("munged", "--foreground", "--force", *(f"--{key}={self.folder / one}" for key, one in own.items()))
        self.until(lambda: (self.folder / "munge.socket").exists())
        self.start("slurmctld", "-D")
        self.start("slurmd", "-D", "-N", self.host)
        self.until(lambda: "idle" in self.said("sinfo", "--noheader", "--format=%T"))
        return self

    def __exit__(self, *_: object) -> None:
        DEFAULT.unlink(missing_ok=True)
        for name in list(self.daemons):
            self.stop(name, signal.SIGTERM)

    def start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen([name, *arguments], env=self.environment, stdout=out, stderr=out)

    def stop(self, name: str, how: signal.Signals) -> None:
        daemon = self.daemons.pop(name)
        daemon.send_signal(how)
        daemon.wait(30)

    def said(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def until(self, true, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.log"))
                raise TimeoutError(f"no Slurm within {seconds:g} s:\n{logs}")
            time.sleep(0.2)
