"""Where a study is kept, so that many workers share it: an embedded file, or a PostgreSQL server.

Optuna keeps the trials. It leaves three gaps, which are closed here and in ``sweep_study``. Its claim of a trial is not
atomic on SQLite, and a trial can be claimed twice when it is enqueued by two workers at once: all that decides who does
what happens under one lock for each study. Its heart beats inside ``Study.optimize`` alone, which draws a new trial
when another worker was faster: trials are asked for under the lock, and the heart beats here. A worker that dies before
its first beat is never missed: the first beat comes before the claim.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import psutil
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from masksub.app.errors import InputError, StoppedError
from masksub.core.seeds import mix

__all__ = [
    "Heartbeat",
    "check_reachable",
    "exclusive",
    "hide_password",
    "is_here_and_dead",
    "open_storage",
    "patiently",
    "place_of",
    "storage_url",
    "this_worker",
]

FILE = "study.sqlite3"
PATIENCE = (1.0, 4.0, 10.0, 30.0)
"""Seconds before each new try when a database does not answer: a restart of the server loses nothing."""
LOCK_SECONDS = 120
"""Longest wait for the lock of a study; it is held for some milliseconds at a time."""


def storage_url(storage: str | None, folder: Path) -> str:
    """The URL for SQLAlchemy.

    Args:
        storage: what the user asked for, None for the embedded file.
        folder: of the runs, where the embedded file is.

    Returns:
        With its password. The embedded file is SQLite and not Optuna's journal: a journal has no heartbeat, so that a
        dead worker's trial would be lost, and its lock, a file, outlives its holder. SQLite is weak with parallel
        writers; ours write a few lines a minute, one at a time, and wait for each other. Its file locks are not safe
        between machines: these need PostgreSQL.

    Raises:
        InputError: another kind of URL, or none at all. The message does not repeat it: it may hold a password.
    """
    if storage is None:
        return URL.create("sqlite", database=str((folder / FILE).absolute())).render_as_string()
    accepted = "--storage must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or left out for a file in the folder"
    try:
        url = make_url(storage)
    except (ArgumentError, ValueError):
        raise InputError(f"{accepted}; what was given is no such URL") from None
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise InputError(f"{accepted}; what was given begins with {url.drivername}://")
    if not url.database:
        raise InputError(f"{accepted}; what was given names no database")
    if "@" in (url.host or ""):  # or a part of the password would be taken for the host, and shown
        raise InputError(f"{accepted}; an @ in a password is written %40")
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def place_of(url: str) -> str:
    """Where a study is, for people: host, port and database, or the file; never user or password."""
    parsed = make_url(url)
    if parsed.drivername == "sqlite":
        return str(parsed.database)
    host = parsed.host or parsed.query.get("host") or "the local socket"
    port = parsed.port or parsed.query.get("port") or 5432
    return f"the database {parsed.database} at {host}, port {port}"


def hide_password(argument: str) -> str:
    """A word of a command line without the password that a URL in it holds."""
    hidden = re.sub(r"(://[^:/@\s]*:)[^/\s]*@", r"\1***@", argument)
    return re.sub(r"([?&]password=)[^&\s]*", r"\1***", hidden)


def check_reachable(url: str) -> None:
    """Connect once; of the embedded file only the folder is looked at.

    Raises:
        InputError: with host, port and the reason.
    """
    if make_url(url).drivername == "sqlite":
        return
    engine = _engine(url)
    try:
        with engine.connect():
            pass
    except (SQLAlchemyError, OSError) as error:
        raise InputError(
            f"can't reach {place_of(url)}: {_reason(error)}. Nothing was written; is the server running, and are host, "
            f"port, user and password right?"
        ) from None


def open_storage(url: str, *, beat: int, grace: int) -> RDBStorage:
    """Optuna's storage; its tables are made where they are missing. To be called under ``exclusive``.

    Args:
        url: of ``storage_url``.
        beat: seconds between two signs of life of a worker.
        grace: seconds without one after which its trial is given to another.

    Raises:
        InputError: tables of another version of Optuna.
    """
    embedded = make_url(url).drivername == "sqlite"
    # A busy file is waited for; a connection that a restarted server has forgotten is made anew.
    options = {"connect_args": {"timeout": 60}} if embedded else {"pool_pre_ping": True, "connect_args": CONNECT}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # heartbeats are called experimental
        try:
            # Optuna fills in {...} of a URL.
            escaped = url.replace("{", "{{").replace("}", "}}")
            return RDBStorage(escaped, engine_kwargs=options, heartbeat_interval=beat, grace_period=grace)
        except RuntimeError as error:
            raise InputError(f"{place_of(url)}: {error}") from None


CONNECT = {"connect_timeout": 10}


@contextlib.contextmanager
def exclusive(url: str, study: str) -> Iterator[None]:
    """Hold the lock of a study. It ends with its holder, however that ends.

    Raises:
        StoppedError: it can't be had.
    """
    parsed = make_url(url)
    if parsed.drivername == "sqlite":
        try:
            with filelock.FileLock(f"{parsed.database}.lock", timeout=LOCK_SECONDS):
                yield
        except filelock.Timeout:
            raise StoppedError(f"{parsed.database}.lock is held by another process for too long") from None
        return
    with _engine(url).connect() as connection, connection.begin():
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
        # A machine that loses power closes no connection: the server must ask whether it is still there.
        for name, value in (("idle", 30), ("interval", 10), ("count", 3)):
            connection.execute(text(f"SET LOCAL tcp_keepalives_{name} = {value}"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": mix("masksub", study)})
        yield


def _engine(url: str) -> Any:
    return create_engine(url, poolclass=NullPool, connect_args=CONNECT)


def patiently(url: str, call: Any, *arguments: Any) -> Any:
    """Call it, and again when the database does not answer.

    Raises:
        StoppedError: it did not answer for long, or refuses. Nothing is lost.
    """
    for seconds in (*PATIENCE, None):
        try:
            return call(*arguments)
        except (SQLAlchemyError, StorageInternalError) as error:
            cause = _cause(error)
            if seconds is None or not isinstance(cause, OperationalError | InterfaceError):
                raise StoppedError(
                    f"{place_of(url)} does not do its work: {_reason(cause)}. What is trained is in the run folders; "
                    f"the same command goes on"
                ) from None
            time.sleep(seconds)
    raise AssertionError


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    """The first line that the driver says; it names no password."""
    said = str(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else str(error)
    return (said.strip().splitlines() or [type(error).__name__])[0]


class Heartbeat:
    """While active, tells the storage every few seconds that the trial's worker is alive.

    A beat that does not arrive is no reason to stop: the next one may.

    Args:
        storage: of the study.
        trial_id: the storage's own number of the trial.
    """

    def __init__(self, storage: RDBStorage, trial_id: int) -> None:
        self._storage, self._trial_id = storage, trial_id
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(timeout=5)

    def _beat(self) -> None:
        while True:
            with contextlib.suppress(SQLAlchemyError, StorageInternalError):
                self._storage.record_heartbeat(self._trial_id)
            if self._end.wait(self._storage.get_heartbeat_interval()):
                self._storage.remove_session()
                return


def this_worker() -> dict[str, Any]:
    """This process, in words that tell it from every other: where process numbers count, number, and when it began."""
    return {"where": _where(), "host": platform.node(), "pid": os.getpid(), "began": psutil.Process().create_time()}


def is_here_and_dead(worker: dict[str, Any] | None) -> bool:
    """Whether a worker was on this machine and is gone, so that nobody need wait until its heart is missed."""
    if not worker or not (where := _where()) or worker.get("where") != where:
        return False
    try:
        process = psutil.Process(worker["pid"])
        # The clock may have been put right in between; numbers of processes are not used again within seconds.
        return abs(process.create_time() - worker["began"]) > 5 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _where() -> str:
    """The machine since it was started, and the container; empty where that can't be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
