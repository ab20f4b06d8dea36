"""The two-branch step in a loop that uses Accelerate; versions 1.10 and later.

    step = AcceleratedStep(accelerator, model, criterion, sub=masksub.MaskSub(0.5))
    accelerator.register_for_checkpointing(step)
    for x, y in loader:
        with accelerator.accumulate(model):
            out = step(x, y)
            optimizer.step()
            optimizer.zero_grad()

``TwoBranchStep`` also works in a loop: ``step(x, y, backward=accelerator.backward)``. What is added here: masks depend
on (seed, update, process), counted as Accelerate counts. So an accumulated update is masked as a whole one, and a
resumed training as an unbroken one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from masksub.core.branches import Branch
from masksub.core.loss import TargetKind
from masksub.core.seeds import MasksOfUpdates
from masksub.core.step import Criterion, StepOutput, TwoBranchStep
from masksub.core.wrappers import sharded_modules, unwrap

_INSTALL = "pip install 'masksub[accelerate]'"

try:
    import accelerate
except ImportError as error:
    raise ImportError(f"masksub.integrations.accelerate needs Accelerate; install it by: {_INSTALL}") from error
if tuple(int(part) for part in accelerate.__version__.split(".")[:2]) < (1, 10):
    raise ImportError(
        f"masksub.integrations.accelerate needs Accelerate 1.10 or later, and {accelerate.__version__} is installed; "
        f"upgrade it by: {_INSTALL}"
    )

__all__ = ["AcceleratedStep"]

_STEPS_IN_BACKWARD = ("DEEPSPEED", "MEGATRON_LM")
"""Kinds of training in which ``accelerator.backward`` is not a backward alone."""


class AcceleratedStep(TwoBranchStep):
    """A ``TwoBranchStep`` whose backward is Accelerate's and whose masks depend on the place in training.

    Optimizer step, clipping, schedules and zeroing stay in the loop. ``accelerator.backward`` divides by the number of
    accumulated micro-batches and scales for fp16, each branch alike. Side effects of a call: those of
    ``TwoBranchStep``, and the update is counted where gradients are complete (``accelerator.sync_gradients``).

    Args:
        accelerator: the loop's.
        model: what ``accelerator.prepare`` returned.
        criterion, sub, weight, mode, target, sub_criterion: as for ``TwoBranchStep``.
        seed: of the masks, the same on all processes, which still draw differently.

    Raises:
        ValueError: as for ``TwoBranchStep``; several processes and a model that was not prepared; DeepSpeed,
            Megatron-LM, or tensor, context or sequence parallelism.
        TypeError: a model wrapped by FSDP1.
    """

    def __init__(
        self,
        accelerator: accelerate.Accelerator,
        model: nn.Module,
        criterion: Criterion,
        *,
        sub: Branch,
        weight: float = 0.5,
        seed: int = 0,
        mode: Literal["split", "joint"] = "split",
        target: TargetKind | Literal["auto", "labels"] = "auto",
        sub_criterion: Criterion | None = None,
    ) -> None:
        _check(accelerator, model)
        super().__init__(
            model, criterion, sub=sub, weight=weight, mode=mode, target=target, sub_criterion=sub_criterion
        )
        self.accelerator = accelerator
        self.updates = 0
        self._masks = MasksOfUpdates(seed)

    def __call__(
        self,
        x: Any,
        y: Tensor,
        *,
        keep: Tensor | None = None,
        generator: torch.Generator | None = None,
        backward: Callable[[Tensor], Any] | None = None,
    ) -> StepOutput:
        """Run both branches and their backward; inside ``accelerator.accumulate(model)`` where gradients accumulate.

        Args:
            x, y, keep: as for ``TwoBranchStep``.
            generator: in place of the one of this update and process.
            backward: in place of ``accelerator.backward``.

        Returns:
            StepOutput of this process and micro-batch, detached; see ``losses``.
        """
        backward = self.accelerator.backward if backward is None else backward
        out = super().__call__(x, y, keep=keep, generator=generator or self._generator(), backward=backward)
        self._count()
        return out

    def joint(
        self, x: Any, y: Tensor, *, keep: Tensor | None = None, generator: torch.Generator | None = None
    ) -> StepOutput:
        """Both forwards, for a loop that adds losses of its own and then runs ``accelerator.backward(loss)`` once.

        Counts as a call of the step. Arguments and result as for ``TwoBranchStep.joint``.
        """
        out = super().joint(x, y, keep=keep, generator=generator or self._generator())
        self._count()
        return out

    def losses(self, out: StepOutput) -> dict[str, float]:
        """Losses of a micro-batch as means over the processes, for ``accelerator.log``. All processes must ask.

        Returns:
            "loss", and "loss_main" and "loss_sub" of the branches that were run.
        """
        named = {"loss": out.loss, "loss_main": out.loss_main, "loss_sub": out.loss_sub}
        run = {name: value.detach() for name, value in named.items() if value is not None}
        together = self.accelerator.reduce(torch.stack(list(run.values())), reduction="mean")
        return dict(zip(run, together.tolist()))

    def state_dict(self) -> dict[str, int]:
        """The place of the masks, for ``accelerator.register_for_checkpointing``; exact between two updates."""
        return {"updates": self.updates, "seed": self._masks.seed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a place that ``state_dict`` gave, with its seed."""
        self.updates = state["updates"]
        self._masks = MasksOfUpdates(state["seed"])

    def _generator(self) -> torch.Generator:
        return self._masks(self.updates, self.accelerator.process_index, self.accelerator.device)

    def _count(self) -> None:
        # Micro-batches of one update draw from one generator; the next update has its own.
        self.updates += self.accelerator.sync_gradients


def _check(accelerator: accelerate.Accelerator, model: nn.Module) -> None:
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in _STEPS_IN_BACKWARD:
        raise ValueError(
            f"distributed_type = {kind}: its backward is not a backward alone, and the step runs one for each branch; "
            f"use DDP or FSDP2 (fsdp_version: 2)"
        )
    parallelism = getattr(accelerator, "parallelism_config", None)
    for name in ("tp_size", "cp_size", "sp_size"):
        if (size := getattr(parallelism, name, None) or 1) > 1:
            raise ValueError(
                f"{name} = {size}: processes that share an input would mask it differently; use data parallelism "
                f"alone (dp_replicate_size, dp_shard_size)"
            )
    unwrap(model)  # refuses what the branches can't see into
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    parallel = isinstance(getattr(model, "_orig_mod", model), DistributedDataParallel)
    if several and not parallel and not sharded_modules(model):
        raise ValueError(
            f"model is a {type(model).__name__} that {dist.get_world_size()} processes would train each on its own: "
            f"pass what accelerator.prepare returned"
        )
