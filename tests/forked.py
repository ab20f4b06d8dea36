"""Processes forked from one that has imported all that masksub needs: start-up, seconds for each, is paid for once.

Each is a process like any other, with its own signals and exit code. What tests share is the server that forks, one for
each process of pytest: ``multiprocessing`` keeps it, and the first to start it settles what it has imported.
"""

from __future__ import annotations

import multiprocessing
import pkgutil
from multiprocessing import get_context
from multiprocessing.context import BaseContext, ForkServerContext

import masksub.app
import masksub.cli

IMPORTED_LATE = (
    "matplotlib.backends.backend_agg", "matplotlib.pyplot", "optuna", "plotly.graph_objects", "scipy.stats",
    "sklearn.datasets", "sqlalchemy", "timm", "torch._dynamo", "torch.distributed.run", "torch.utils.tensorboard",
)  # fmt: skip
"""What commands import when they come to it."""


def imported() -> list[str]:
    """All modules of the command, and what they import late."""
    packages = [(package.__path__, f"{package.__name__}.") for package in (masksub.cli, masksub.app)]
    ours = [module.name for path, name in packages for module in pkgutil.walk_packages(path, name)]
    return [*ours, *IMPORTED_LATE]


def context() -> ForkServerContext:
    """For ``context().Process(...)``."""
    found = get_context("forkserver")
    found.set_forkserver_preload(imported())
    return found


def in_place_of_spawn(method: str | None = None) -> BaseContext:
    """``multiprocessing.get_context``, but what would be started anew is forked."""
    return context() if method == "spawn" else get_context(method)


def fork_workers() -> None:
    """Have this process, which does nothing else yet, fork its workers where it would start them anew."""
    ours = get_context("fork")
    multiprocessing.get_context = lambda method=None: ours  # type: ignore[assignment]
