"""A PostgreSQL server of the tests' own, on loopback, in a folder that goes away."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PASSWORD = "not:to/be@shown"
QUOTED = "not%3Ato%2Fbe%40shown"


def programs() -> Path | None:
    """The folder of initdb and pg_ctl: Debian does not put it on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if found:
        return found[-1]
    pg_ctl = shutil.which("pg_ctl")
    return Path(pg_ctl).resolve().parent if pg_ctl else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Its URL, with a user who needs a password; skips where PostgreSQL is not installed."""
    folder_of_programs = programs()
    if folder_of_programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql); make test-postgres does it")
    root = os.geteuid() == 0
    if root and not shutil.which("runuser"):
        pytest.skip("PostgreSQL refuses to run as root, and there is no runuser")
    folder = Path(tempfile.mkdtemp(prefix="masksub-postgres-"))
    password = folder / "password"
    password.write_text(PASSWORD)
    if root:
        for path in (folder, password):
            shutil.chown(path, "postgres")

    def call(program: str, *arguments: str) -> None:
        command = [
            *(["runuser", "-u", "postgres", "--"] if root else []),
            str(folder_of_programs / program),
            *arguments,
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    data, port = folder / "data", free_port()
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
    try:
        call("initdb", "-D", str(data), "-U", "tester", "-A", "scram-sha-256", f"--pwfile={password}", "-N")
        call("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://tester:{QUOTED}@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
