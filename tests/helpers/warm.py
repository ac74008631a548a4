"""Fork the processes that tests start from a server that has already imported the libraries.

Importing torch, transformers and PEFT takes several seconds of CPU time, and the tests start more than a hundred
processes. `warm_python` therefore replaces `sys.executable` with a small client. It sends its arguments, environment,
working directory and file descriptors to a server, which forks a process that runs the program as Python would. Output,
exit codes and signals are those of a separate process. Only programs that import these libraries are forked; all others
are run by the real interpreter.

The server starts with the first process that needs it, serves all workers of pytest-xdist, and ends with pytest.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import re
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Modules that the server imports. Modules that read stdout or the environment at import must not be among them.
PRELOADED = (
    "accelerate.commands.launch",
    "datasets",
    "matplotlib.figure",
    "peft",
    "torch.distributed.run",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "unlora.cli.unlearn",
    "unlora.cli.finetune",
    "unlora.cli.evaluate",
    "unlora.pipeline.unlearn",
    "unlora.pipeline.attack",
    "unlora.pipeline.membership",
)
# The client program. `-I -S` skips the imports and paths that it does not need, so that it starts fast.
CLIENT = """#!{python} -IS
import sys
sys.path.insert(0, {folder!r})
from warm import client
client({python!r}, {socket!r}, {owner})
"""


@contextlib.contextmanager
def warm_python(folder: Path, owner: int) -> Iterator[Path]:
    """Write clients named `python` and `unlora` to `folder`, and use the former as `sys.executable`.

    Args:
        folder: a folder that no other process uses.
        owner: ID of the process with which the server ends; processes with the same owner share a server.
    """
    from multiprocessing import spawn  # imported here, since the client must start fast

    if not sys.platform.startswith("linux"):  # on other systems, system libraries are not safe to use after a fork
        yield Path(sys.executable).parent
        return
    real, path = sys.executable, f"/tmp/unlora-tests-{owner}"
    text = CLIENT.format(python=real, folder=str(Path(__file__).parent), socket=path, owner=owner)
    for name in ("python", "unlora"):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    sys.executable = str(folder / "python")
    spawn.set_executable(sys.executable)
    try:
        yield folder
    finally:
        sys.executable = real
        spawn.set_executable(real)


def program(argv: list[str]) -> tuple[str, str, list[str]] | None:
    """Return what to fork for a command line: its kind ("module", "script", "spawned"), name and arguments; or None."""
    rest = list(argv[1:])
    if os.path.basename(argv[0]) == "unlora":
        return "module", "unlora", rest
    while rest and rest[0] in ("-u", "-B"):
        rest.pop(0)
    match rest:
        case ["-m", name, *arguments] if name.partition(".")[0] in ("unlora", "experiments", "accelerate"):
            return "module", name, arguments
        case ["-c", code, *arguments] if code.startswith("from multiprocessing.spawn import spawn_main"):
            return "spawned", code, arguments
        case [name, *arguments] if name.endswith(".py"):
            with open(name, encoding="utf-8") as script:
                return ("script", name, arguments) if "unlora" in script.read() else None
    return None


def client(python: str, path: str, owner: int) -> None:
    """Represent the process that the server forks: forward signals to it, and end with its exit status."""
    entry = program(sys.argv)
    if entry is None:
        os.execv(python, [python, *sys.argv[1:]])
    spawned = entry[0] == "spawned"
    inherited = [int(number) for number in re.findall(r"(?:tracker_fd|pipe_handle)=(\d+)", entry[1])] if spawned else []
    connection = connect(python, path, owner)
    message = {"program": entry, "folder": os.getcwd(), "environment": dict(os.environ), "inherited": inherited}
    message |= {"executable": os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "python")}
    text = json.dumps(message).encode()
    socket.send_fds(connection, [struct.pack("!I", len(text))], [0, 1, 2, *inherited])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: connection.send(bytes([number])))
    connection.sendall(text)
    status = struct.unpack("!i", connection.recv(4))[0]
    if os.WIFSIGNALED(status):
        with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def connect(python: str, path: str, owner: int) -> socket.socket:
    """Connect to the server, starting it if it is not running."""

    def attempt() -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            return None
        return connection

    connection = attempt()
    if connection is None:
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            connection = attempt()
            if connection is None:
                with open(f"{path}.log", "w") as log:
                    server = subprocess.Popen(
                        [python, __file__, path, str(owner)],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                while connection is None:
                    if server.poll() is not None:
                        sys.exit(f"the server of warm processes has ended: see {path}.log")
                    time.sleep(0.01)
                    connection = attempt()
    return connection


def serve(path: str, owner: int) -> None:
    """Import everything, then fork a process for each connection until the owner ends."""
    sys.path.pop(0)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # exclude the shared objects from garbage collection, which would copy their pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are not waited for, and must not stay as zombies
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        server.settimeout(1)
        while os.path.exists(f"/proc/{owner}"):
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                server.close()
                supervise(connection)
            connection.close()
    for name in (path, f"{path}.lock", f"{path}.log"):
        os.unlink(name)


def supervise(connection: socket.socket) -> None:
    """Fork the process, forward signals from its client, kill it if the client dies, and report its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.settimeout(None)
    head, files, _, _ = socket.recv_fds(connection, 4, 16)
    text = b""
    while len(text) < struct.unpack("!I", head)[0]:
        text += connection.recv(struct.unpack("!I", head)[0] - len(text))
    worker = os.fork()
    if worker == 0:
        connection.close()
        become(json.loads(text), files)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(worker)
    while ended not in (ready := select.select([ended, connection], [], [])[0]):
        if connection in ready:
            numbers = connection.recv(16)
            for number in numbers:
                os.kill(worker, number)  # it has not been waited for, so its process ID cannot have been reused
            if not numbers:  # the client was killed, so the process and its children are killed too
                os.kill(worker, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker, signal.SIGKILL)
                break
    status = os.waitpid(worker, 0)[1]
    with contextlib.suppress(OSError):
        connection.send(struct.pack("!i", status))
    os._exit(0)


def become(message: dict[str, Any], files: list[int]) -> None:
    """Run the program in this process as Python would, and exit."""
    # The descriptors are first moved to high numbers, since the target number of one may be in use by another.
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, 500) for file in files]
    for file, number in zip(high, [0, 1, 2, *message["inherited"]], strict=True):
        os.dup2(file, number, inheritable=number < 3)
    for file in {*high, *files} - {0, 1, 2, *message["inherited"]}:
        os.close(file)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(message["folder"])
    os.environ.clear()
    os.environ.update(message["environment"])
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in enumerate("rww"))  # noqa: SIM115
    sys.stderr.reconfigure(line_buffering=True)
    import huggingface_hub.constants  # it was imported with the environment of the server

    huggingface_hub.constants.HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes")
    kind, name, arguments = message["program"]
    sys.executable, sys.argv = message["executable"], [name, *arguments]
    code = 1
    try:
        if kind == "module":
            sys.path.insert(0, message["folder"])
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        elif kind == "script":
            sys.path.insert(0, os.path.dirname(os.path.abspath(name)))
            runpy.run_path(name, run_name="__main__")
        else:
            from multiprocessing import spawn

            spawn.set_executable(sys.executable)
            exec(name, {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
