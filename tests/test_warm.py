"""A stage forked from a server: its words, its status, its end with its caller; and the plain process otherwise."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.runtime import warm

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="forks are watched on Linux alone")

SERVER = """
import sys
import holdfast.__main__ as verbs
from holdfast.runtime import warm
sys.path.append(sys.argv[1])
verbs.MODULES |= {"echo": "echo", "broken": "broken"}
warm.LIBRARIES |= {"echo": ("torch", "heavy"), "broken": ("no_such_library",)}
warm.serve(sys.argv[1], int(sys.argv[2]))
"""
STAGE = """
import os, signal, sys, time
def main(arguments):
    print(os.getppid(), os.getcwd(), os.environ["GIVEN"], *arguments, flush=True)
    print(sys.stdin.read(), file=sys.stderr)
    exec(arguments[0])
"""
# Takes as long to load as there is a file «slow» beside it, and says when it begins.
LIBRARY = """
import pathlib, time
here = pathlib.Path(__file__)
here.with_name("loading").touch()
while here.with_name("slow").exists():
    time.sleep(0.01)
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GIVEN": "a word"}


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def server(tmp_path):
    """The folder of a server that knows two more stages, and what keeps it alive."""
    (tmp_path / "echo.py").write_text(STAGE)
    (tmp_path / "heavy.py").write_text(LIBRARY)
    folder, (alive, kept) = tmp_path, os.pipe()
    command = [sys.executable, "-c", SERVER, str(folder), str(alive)]
    with subprocess.Popen(command, pass_fds=[alive], env=ENVIRONMENT) as process, os.fdopen(kept, "w") as held:
        os.close(alive)
        wait_until((folder / "socket").exists)
        yield process, folder, held


def asked(folder: Path, *words: str, threads: str = "1") -> subprocess.Popen[str]:
    environment = {**ENVIRONMENT, "HOLDFAST_WARM": str(folder / "socket"), "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-m", "holdfast.runtime.warm", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd="/", env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def assert_it_goes_on(folder: Path) -> None:
    caller = asked(folder, "echo", "")
    assert caller.communicate("")[0]
    assert caller.returncode == 0


@pytest.mark.parametrize(
    ("ends", "status", "says"),
    [
        ("", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("sys.exit('what is wrong')", 1, "what is wrong"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, ""),
    ],
)
def test_a_fork_has_the_callers_words_and_the_caller_its_end(server, ends, status, says):
    caller = asked(server[1], "echo", ends, "b=[1, 2]")
    out, err = caller.communicate("typed")
    assert caller.returncode == status
    parent, words = out.rstrip("\n").split(" ", 1)
    assert int(parent) not in (caller.pid, os.getpid())
    assert words == f"/ a word {ends} b=[1, 2]"
    assert err.startswith("typed\n")
    assert says in err


def test_forks_run_side_by_side(server, tmp_path):
    """Each waits for a file of every other."""
    wait = f"import pathlib as p\nf = p.Path({str(tmp_path)!r})\n(f / f'{{os.getpid()}}.here').touch()\n"
    wait += "while len([*f.glob('*.here')]) < 6: time.sleep(.01)"
    callers = [asked(server[1], "echo", wait) for _ in range(6)]
    for caller in callers:
        caller.stdin.close()
        caller.stdin = None
    for caller in callers:
        caller.communicate()
        assert caller.returncode == 0


def test_a_killed_caller_takes_its_fork_along(server):
    caller = asked(server[1], "echo", "print(os.getpid(), flush=True); time.sleep(600)")
    caller.stdin.close()
    caller.stdout.readline()
    fork = int(caller.stdout.readline())
    caller.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{fork}").exists())
    caller.wait()
    caller.stdout.close()
    caller.stderr.close()


def test_a_caller_killed_while_libraries_load_has_no_stage(server, tmp_path):
    (tmp_path / "slow").touch()
    caller = asked(server[1], "echo", f"time.sleep(1); open({str(tmp_path / 'done')!r}, 'w')")
    wait_until((tmp_path / "loading").exists)
    caller.kill()
    caller.wait()
    (tmp_path / "slow").unlink()
    caller.stdout.read()  # ends once nobody holds the stream any more
    for stream in (caller.stdin, caller.stdout, caller.stderr):
        stream.close()
    assert not (tmp_path / "done").exists()
    assert_it_goes_on(server[1])


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_fork_has_the_callers_number_of_threads(server, threads):
    says = "import torch; print(torch.get_num_threads()); a = torch.randn(999, 99, generator=torch.manual_seed(0)); "
    says += "print((a.T @ a).sum().item())"
    caller = asked(server[1], "echo", says, threads=threads)
    forked = caller.communicate("")[0].splitlines()[-2:]
    plain = subprocess.run(
        [sys.executable, "-c", says], env=ENVIRONMENT | {"OMP_NUM_THREADS": threads}, capture_output=True, text=True
    )
    assert forked == plain.stdout.splitlines()
    assert forked[0] == threads


@pytest.mark.parametrize("stage", ["broken", "unheard_of"])
def test_what_the_server_cannot_be_is_a_process_of_its_own(server, stage):
    caller = asked(server[1], stage)
    assert f"holdfast {stage}: {stage}: no such verb" in caller.communicate()[1]
    assert_it_goes_on(server[1])


def test_a_server_ends_with_its_starter_and_leaves_nothing(server):
    process, folder, held = server
    held.close()
    assert process.wait(60) == 0
    assert not folder.exists()
    assert "holdfast echo: echo: no such verb" in asked(folder, "echo").communicate()[1]


def test_a_caller_that_leaves_at_once_does_no_harm(server):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server[1] / "socket"))
    assert_it_goes_on(server[1])


def test_temporary_folders_of_libraries_are_a_forks_own(server, tmp_path):
    """What is made on import is deleted by the first process to end of all that inherited it: W&B makes two."""
    load = "import sys; from holdfast.runtime import warm; assert all(map(warm._loaded, warm.LIBRARIES)); "
    load += "import os; names = {x.name for x in warm.TEMPORARY}; code = 0\n"
    load += "if os.fork() == 0:\n    warm.own_folders(); own = {x.name for x in warm.TEMPORARY}\n"
    load += "    sys.exit(bool(own & names) or not all(map(os.path.isdir, own)))\n"
    load += "code = os.waitstatus_to_exitcode(os.wait()[1])\n"
    load += "sys.exit(f'{len(names)} {code} {all(map(os.path.isdir, names))}')"
    ended = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == "2 0 True"


def test_one_server_is_enough(tmp_path, monkeypatch):
    (tmp_path / "socket").touch()
    monkeypatch.setenv(warm.ADDRESS, str(tmp_path / "socket"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another one was started"))
    warm.start()


def test_a_server_of_another_package_is_not_used(server, tmp_path):
    """Its fork would run what the caller does not have."""
    copy = tmp_path / "copy"
    shutil.copytree(Path(warm.__file__).parents[1], copy / "holdfast")
    environment = {**ENVIRONMENT, "HOLDFAST_WARM": str(server[1] / "socket"), "PYTHONPATH": str(copy)}
    command = [sys.executable, "-m", "holdfast.runtime.warm", "echo", ""]
    ended = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert "holdfast echo: echo: no such verb" in ended.stderr
    assert_it_goes_on(server[1])
