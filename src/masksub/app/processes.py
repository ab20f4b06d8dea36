"""What the processes of one training tell each other beside gradients, and what is said when one is gone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from .errors import StoppedError

__all__ = ["Processes"]

T = TypeVar("T")

# Gloo tells a lost peer by a plain RuntimeError.
_LOST = (
    "gloo/",
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL",
    "timed out",
    "Timed out",
)


class Processes:
    """The processes that train together; one is the usual case and costs nothing.

    Args:
        accelerator: knows them.
        timeout: seconds after which a process that does not answer counts as gone, for the message.
    """

    def __init__(self, accelerator: Accelerator, timeout: float) -> None:
        self._accelerator, self._timeout = accelerator, timeout

    @property
    def count(self) -> int:
        """Number of processes."""
        return int(self._accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this one writes and speaks for all."""
        return bool(self._accelerator.is_main_process)

    def any(self, *flags: bool) -> list[bool]:
        """Each flag: whether it is set on any process. All processes must ask; it is one small reduction."""
        if self.count == 1:
            return list(flags)
        raised = torch.tensor([float(flag) for flag in flags], device=self._accelerator.device)
        return [bool(value) for value in self._accelerator.reduce(raised).tolist()]

    def sum(self, values: Tensor) -> Tensor:
        """Sums over all processes, on the CPU. All must ask."""
        if self.count == 1:
            return values
        together: Tensor = self._accelerator.reduce(values.to(self._accelerator.device))
        return together.cpu()

    def gather(self, value: T) -> list[T]:
        """The value of each process; it is pickled. All processes must ask."""
        return list(gather_object([value])) if self.count > 1 else [value]

    def wait(self) -> None:
        """Go on when all processes are here."""
        self._accelerator.wait_for_everyone()

    @contextmanager
    def together(self, place: Callable[[], str]) -> Iterator[None]:
        """Work that needs all processes.

        Args:
            place: where the training stands and how to go on, for the message.

        Raises:
            StoppedError: another process is gone or does not answer.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or isinstance(error, StoppedError) or not _lost(error):
                raise
            raise StoppedError(
                f"another process of this training is gone, or did not answer for {self._timeout:g} s "
                f"(train.timeout_seconds); {place()} ({_first_line(error)})"
            ) from error


def _lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST)


def _first_line(error: BaseException) -> str:
    """The first sentence, without the place in the library's own sources."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[^]]*\] ?", "", line).split(". ")[0]
