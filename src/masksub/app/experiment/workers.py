"""Several processes that share the work of one command, and end together.

Each process trains by itself and takes one thing after another; who has what is settled by the locks of the run
folders (``cells``), so that one that is killed leaves nothing but a run for the others to go on with.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch

from masksub.app import energy
from masksub.app.cores import available_cores, threads_for
from masksub.app.interrupt import InterruptedRun, StopRequest
from masksub.app.progress import Reporter

__all__ = ["default_jobs", "run_in_processes"]

GOES_ON = "stopped on request; the same command goes on with what is missing"


RESTARTS = 2
"""How often a killed worker is replaced: memory may have been short for a moment, or for good."""


def default_jobs(device: str) -> int:
    """One process a GPU; on a CPU one a core, up to four: each holds the data."""
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return gpus or min(4, available_cores())


def run_in_processes(
    function: Callable[..., Any],
    arguments: list[tuple[Any, ...]],
    *,
    jobs: int,
    reporter: Reporter,
    poll: Callable[[], tuple[int, int, str]],
) -> list[Any]:
    """Call ``function`` once for each tuple of arguments, each call in a process of its own.

    Args:
        function: importable by name; arguments and result can be pickled.
        arguments: one tuple a call; more than ``jobs`` of them wait for their turn.
        jobs: processes at one time. GPUs are shared out among them, and processor cores, unless
            OMP_NUM_THREADS says how many each takes.
        reporter: where progress is told.
        poll: how far the work is: done, total, note.

    Returns:
        The results in order. A call whose process was killed, which is told as a warning, is made again, up to
        ``RESTARTS`` times; then it is None.

    Raises:
        InterruptedRun: on SIGINT or SIGTERM; each process was told to stop, wrote its checkpoint and ended.
        Exception: the first that a call raised; the other processes were stopped in the same way.
    """
    context = multiprocessing.get_context("spawn")
    jobs = max(1, min(jobs, len(arguments)))
    threads = threads_for(jobs)
    results: list[Any] = [None] * len(arguments)
    waiting, killed = list(enumerate(arguments))[::-1], [0] * len(arguments)
    running: dict[Any, tuple[int, int, Any]] = {}  # sentinel -> number of the call, its place, its pipe
    processes: dict[Any, Any] = {}
    with StopRequest() as request:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    number, each = waiting.pop()
                    place = min(set(range(jobs)) - {place for _, place, _ in running.values()})
                    ours, theirs = context.Pipe(duplex=False)
                    process = context.Process(target=_call, args=(theirs, place, threads, jobs, function, each))
                    process.start()
                    theirs.close()
                    running[process.sentinel] = (number, place, ours)
                    processes[process.sentinel] = process
                ended = multiprocessing.connection.wait([*running, *(pipe for _, _, pipe in running.values())], 0.5)
                for sentinel in [s for s, (_, _, pipe) in running.items() if s in ended or pipe in ended]:
                    number, _, pipe = running.pop(sentinel)
                    process = processes.pop(sentinel)
                    try:
                        results[number] = _result(pipe, process)
                    except EOFError:
                        again = killed[number] < RESTARTS
                        reporter.warn(
                            f"a worker was killed (exit code {process.exitcode})"
                            f"{'; another takes its place' if again else ', for the third time'}"
                        )
                        if again:
                            killed[number] += 1
                            waiting.append((number, arguments[number]))
                reporter.step("training", *poll())
                if request.signum:
                    raise InterruptedRun(request.signum, GOES_ON)
        except BaseException:
            _stop(list(processes.values()))
            raise
    return results


def _result(pipe: Any, process: Any) -> Any:
    """What a call returned; raises what it raised, EOFError if its process was killed."""
    try:
        ok, value = pipe.recv()
    finally:
        process.join()
    if not ok:
        raise value
    return value


def _stop(processes: list[Any]) -> None:
    """Ask each process to stop, once, and wait: what it trains writes a checkpoint. A second signal kills them."""
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
    except BaseException:
        for process in processes:
            process.kill()
        raise


def _call(
    pipe: Any, place: int, threads: int, jobs: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the parent alone, which asks each process once: a second time would end it at once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if jobs > 1:
        energy.no_cpu()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    if gpus:  # CUDA is not started yet in this process
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    try:
        answer = (True, function(*arguments))
    except Exception as error:
        answer = (False, error)
    try:
        pipe.send(answer)
    except Exception as error:  # an exception that can't travel
        pipe.send((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]} ({error})")))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
