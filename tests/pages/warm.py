"""A process that has imported all that ``masksub`` needs, and forks for each command: start-up is paid for once.

``python -m tests.pages.warm SOCKET`` serves; the script of ``client_script``, under the name of a command, has its
arguments, folder, environment and open files handed over and ends with its exit code. What a page writes in a shell so
stays word for word, with its pipes and redirections.

Commands that install, launch eight processes or train for minutes are not carried out: they are checked. Experiments
train one seed of each arm, by workers that are forked like the command; ``inspect`` measures nothing; of all plans of a
recipe on a page one is computed. With ``MASKSUB_PAGES=whole`` in the environment all but installing and the
demonstration is done as it is written.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
COSTLY = ("demo",)
"""Subcommands that train for minutes and have tests of their own; here they are parsed only."""


IMPORTED_LATE = (
    "matplotlib.backends.backend_agg", "matplotlib.pyplot", "optuna", "plotly.graph_objects", "scipy.stats",
    "sklearn.datasets", "sqlalchemy", "torch.distributed.run", "torch.utils.tensorboard",
)  # fmt: skip
"""What commands import when they come to it."""


def whole() -> bool:
    """Whether what takes minutes is done, too."""
    return os.environ.get("MASKSUB_PAGES") == "whole"


def client_script() -> str:
    """A script that stands on the PATH under the name of a command."""
    return f"""#!{sys.executable} -IS
import array, json, os, socket, sys
name = os.path.basename(sys.argv[0])
asked = json.dumps([name, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["MASKSUB_WARM"])
    files = array.array("i", [0, 1, 2])
    server.sendmsg([len(asked).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
    server.sendall(asked)
    code = server.recv(1)
sys.exit(code[0] if code else "the process that runs {{}} is gone".format(name))
"""


# ---- what each command does


def masksub(arguments: list[str]) -> int:
    """The command itself."""
    from tests.pages.commands import check_command

    if arguments and arguments[0] in COSTLY:
        check_command(arguments)
        return 0
    if arguments and arguments[0] in ("compare", "sweep") and not whole():
        check_command(arguments, Path.cwd())
        arguments = _one_seed(arguments)
        forked = multiprocessing.get_context("fork")
        multiprocessing.get_context = lambda method=None: forked  # type: ignore[assignment]
    if arguments and arguments[0] == "inspect" and not whole():
        check_command(arguments)
        arguments = [*arguments, "--no-measure"]
    if arguments and arguments[0] == "plan" and not whole():
        check_command(arguments, Path.cwd())
        planned = Path(os.environ["MASKSUB_SCRATCH"], arguments[1].replace("/", "_") + ".planned")
        if planned.exists():
            return 0
        planned.touch()
    sys.argv = ["masksub", *arguments]
    from masksub.cli import main

    main()
    return 0


def _one_seed(arguments: list[str]) -> list[str]:
    """The same experiment with one seed, and two settings where they are drawn."""
    for option, least in (("--seeds", "1"), ("--trials", "2")):
        if option in arguments:
            arguments[arguments.index(option) + 1] = least
    return arguments if "--seeds" in arguments else [*arguments, "--seeds", "1"]


def pip(arguments: list[str]) -> int:
    """Check that the extras which a page installs are there. Nothing is installed."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    optional = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = set(re.findall(r"^([\w-]+) = \[", optional, re.M))
    for word in arguments:
        if extras := re.fullmatch(r"(?:masksub|\.)\[([\w,-]+)\].*", word):
            unknown = set(extras[1].split(",")) - known
            if unknown:
                raise SystemExit(f"pip {' '.join(arguments)}: masksub has no extra {', '.join(sorted(unknown))}")
    return 0


def make(arguments: list[str]) -> int:
    """Check that the Makefile has the targets."""
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for word in arguments:
        if "=" not in word and word not in targets:
            raise SystemExit(f"make {word}: the Makefile has no such target")
    return 0


def torchrun(arguments: list[str]) -> int:
    """Parse the launcher's options, and what it starts."""
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(arguments)
    return _launched(parsed.module, parsed.training_script, parsed.training_script_args)


def accelerate(arguments: list[str]) -> int:
    """The same for ``accelerate launch``; other subcommands of it are refused."""
    from accelerate.commands.launch import launch_command_parser

    if arguments[:1] != ["launch"]:
        raise SystemExit(f"accelerate {' '.join(arguments)}: only launch is known here")
    parsed = launch_command_parser().parse_args(arguments[1:])
    return _launched(parsed.module, parsed.training_script, parsed.training_script_args)


def _launched(module: bool, script: str, arguments: Sequence[str]) -> int:
    """Check what a launcher would start."""
    from tests.pages.commands import check_command

    if module and script == "masksub":
        check_command(arguments, Path.cwd())
    elif not module and not Path(script).is_file():
        raise SystemExit(f"{script}: no such file")
    return 0


STAND_INS: dict[str, Callable[[list[str]], int]] = {
    "masksub": masksub,
    "pip": pip,
    "make": make,
    "torchrun": torchrun,
    "accelerate": accelerate,
}
LAUNCHERS = ("torchrun", "accelerate")


# ---- the process


def serve(path: str) -> None:
    """Answer at a socket, one fork a command, until the process that started this one ends."""
    for name in ("masksub.cli", "masksub.app"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    for name in IMPORTED_LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # forks share what is imported, and need not look through it
    children: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(path + ".new")
        listener.listen()
        Path(path + ".new").rename(path)  # from here on it is found
        selector.register(listener, selectors.EVENT_READ)
        starter = os.getppid()
        while os.getppid() == starter:  # a test process that was killed leaves nothing behind
            if selector.select(timeout=0.01 if children else 0.5):
                connection, _ = listener.accept()
                files, (name, arguments, folder, environment) = _request(connection)
                if (child := os.fork()) == 0:
                    connection.close()
                    listener.close()
                    _run(files, name, arguments, folder, environment)
                children[child] = connection
                for file in files:
                    os.close(file)
            for child in [*children]:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    with contextlib.suppress(BrokenPipeError), children.pop(child) as connection:
                        code = os.waitstatus_to_exitcode(status)
                        connection.sendall(bytes([code if code >= 0 else 128 - code]))


def _request(connection: socket.socket) -> tuple[list[int], tuple[str, list[str], str, dict[str, str]]]:
    """The three files that were handed over, and what is to be run."""
    rights = array.array("i")
    length, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_LEN(3 * rights.itemsize))
    rights.frombytes(ancillary[0][2])
    text, wanted = b"", int.from_bytes(length, "big")
    while len(text) < wanted:
        text += connection.recv(wanted - len(text))
    return [*rights], json.loads(text)


def _run(files: list[int], name: str, arguments: list[str], folder: str, environment: dict[str, str]) -> NoReturn:
    """Carry out one command in this, forked, process, and end it."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if hasattr(os, "sched_setaffinity"):  # one core: commands then start one worker, not one for each core
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Workers that the command starts must not take this module for the program that they belong to.
    sys.modules["__main__"].__spec__ = None
    del sys.modules["__main__"].__file__
    code: int | str | None = 1
    try:
        code = STAND_INS[name](arguments)
    except SystemExit as error:
        code = error.code
    except ValueError as error:
        code = f"{name} {' '.join(arguments)}: {error}"
    except BaseException:
        traceback.print_exc()
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    # As at the end of a program, but for the clearing up of all that was imported, which takes seconds.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    serve(sys.argv[1])
