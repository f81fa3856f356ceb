"""A process that has a stage's libraries loaded already, and becomes the stage by forking.

Snakemake starts every stage as a process of its own, and a third of a tiny model's stage goes into importing torch and
transformers. `start` leaves a server behind, for as long as the process that called it lives. Called as
`python -m holdfast.runtime.warm <stage> <overrides>`, this module asks the server for a fork with its own arguments,
environment, folder, streams and number of threads. It ends with the fork's exit status, and takes the fork along if it
is killed. Where no server answers, or one of another Python or package, it becomes `holdfast <stage> <overrides>`; and
with several processes it is `torchrun … -m holdfast <stage> <overrides>`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import NamedTuple

ADDRESS = "HOLDFAST_WARM"
PROCESSES = "HOLDFAST_PROCESSES"  # how many of them share a stage's work
TRACKING = ("wandb", "wandb.sdk.launch.inputs.internal")  # the latter is imported by every run that begins
# Of the architectures Llama's, which imports what the others do.
MODELS = (
    *TRACKING,
    "pandas",
    "pyarrow.parquet",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "holdfast.perturbations",
    "holdfast.evaluation.answers",
    "holdfast.methods",
)
# `data` needs none of them, `pretrain` more threads.
LIBRARIES = {
    "align": (*MODELS, "datasets", "trl.trainer.sft_trainer"),
    "answer": MODELS,
    "elicit": MODELS,
    "probe": (*MODELS, "holdfast.probing.probe"),
    "refine": MODELS,
    "evaluate": (*MODELS, "bitsandbytes", "torchao.quantization"),
    "judge": MODELS,
    "tables": (*TRACKING, "pandas", "pyarrow.parquet", "scipy.stats", "matplotlib.pyplot", "holdfast.reporting"),
}


PROGRAM = f"{sys.prefix} {os.path.realpath(__file__)}"  # what a fork would be of
TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []  # what libraries made as they were loaded


class Request(NamedTuple):
    stage: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]
    program: str


def start() -> None:
    """Start the server, where none is around this process. Only on Linux, where the end of a process can be waited for
    like the end of a stream."""
    if not hasattr(os, "pidfd_open") or os.path.exists(os.environ.get(ADDRESS, "")):
        return
    folder = tempfile.mkdtemp(prefix="holdfast-")
    os.environ[ADDRESS] = os.path.join(folder, "socket")
    alive, _ = os.pipe()  # the other end stays open until this process ends, however it ends
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    subprocess.Popen(
        [sys.executable, "-c", f"from holdfast.runtime import warm; warm.serve({folder!r}, {alive})"],
        pass_fds=[alive],
        env=os.environ | dict.fromkeys(threads, "1"),
        stdin=subprocess.DEVNULL,
    )
    os.close(alive)


def serve(folder: str, alive: int) -> None:
    """Fork for every request at `folder`/socket, until `alive` ends. In a fork, returns after the stage."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.disable()  # what the server has it keeps
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.join(folder, "socket"))
        server.listen(64)
        try:
            fork = None
            while fork is None and alive not in select.select([server.fileno(), alive], [], [])[0]:
                fork = _answered(server)
        except KeyboardInterrupt:
            fork = None
    if fork is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _become(*fork)


def _answered(server: socket.socket) -> tuple[Request, list[int]] | None:
    """In a fork: the request that it serves, and its streams. In the server: None."""
    connection, _ = server.accept()
    streams: list[int] = []
    with connection:
        try:
            streams = socket.recv_fds(connection, 1, 3)[1]
            with connection.makefile("rb") as lines:
                request = Request(*json.loads(lines.readline()))
            wanted = request.program == PROGRAM and _loaded(request.stage)
            if wanted and os.fork() == 0:
                _watched(connection, [*streams, server.fileno()])
                return request, streams
        except (OSError, ValueError):  # no memory for a fork, or a caller that is gone
            pass
    for stream in streams:
        os.close(stream)
    return None


def _loaded(stage: str) -> bool:
    """Load the stage's libraries; whether that worked. The caller reports what is wrong."""
    from holdfast.runtime.run import quiet

    try:
        quiet()
        for name in LIBRARIES[stage]:
            importlib.import_module(name)
    except Exception:
        return False
    TEMPORARY.extend(one for one in gc.get_objects() if type(one) is tempfile.TemporaryDirectory)
    gc.freeze()  # a collection in a fork need not touch, and so copy, what the server loaded
    return True


def _watched(connection: socket.socket, others: list[int]) -> None:
    """Fork once more, and return there alone. Here, tell the caller that the stage began and how it ended, and end the
    stage if the caller is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        stage = os.fork()
    except OSError:
        os._exit(1)
    if not stage:
        return
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stage gets it too, and ends
        for descriptor in others:
            os.close(descriptor)
        ended = os.pidfd_open(stage)
        with suppress(OSError):  # a caller that left while the libraries were loaded: what follows sees its end
            connection.send(b"+")
        if ended not in select.select([ended, connection.fileno()], [], [])[0]:
            os.kill(stage, signal.SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(stage, 0)[1])
        connection.send(bytes([code if code >= 0 else 128 - code]))
    finally:
        os._exit(0)


def own_folders() -> None:
    """New temporary folders in the place of those that libraries made: the first fork to end would delete them for
    all."""
    for folder in TEMPORARY:
        getattr(folder, "_finalizer").detach()  # noqa: B009
        folder.__init__()  # type: ignore[misc]


def _become(request: Request, streams: list[int]) -> None:
    own_folders()
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    gc.enable()
    if "torch" in sys.modules:  # which read the server's environment
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    importlib.import_module("holdfast.__main__").main([request.stage, *request.arguments])


def main(stage: str, *arguments: str) -> None:
    """Run the stage in a fork of the server, or as several processes, or else in this process."""
    if (processes := int(os.environ.get(PROCESSES, 1))) > 1:
        from holdfast.runtime.ranks import torchrun

        sys.exit(torchrun(processes, stage, *arguments))
    request = Request(stage, list(arguments), os.getcwd(), dict(os.environ), PROGRAM)
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ.get(ADDRESS, ""))
            socket.send_fds(connection, [b"."], [0, 1, 2])
            connection.sendall(json.dumps(request).encode() + b"\n")
            started = connection.recv(1)
        except OSError:
            started = b""
        if started:
            ended = connection.recv(1)
            sys.exit(ended[0] if ended else 1)
    os.execv(sys.executable, [sys.executable, "-m", "holdfast", stage, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
