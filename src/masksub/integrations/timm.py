"""MaskSub as a training task of timm, for timm's own training script and loops like it.

Supported: timm 1.0.23 (the first with ``timm.task``) to 1.0.31. Before 1.0.27 timm's tasks have no EMA, no checkpoint
state and no ``no_sync``; ``MultiLabelMaskSubTask`` is there from 1.0.31 on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from masksub.core.branches import Branch, MaskSub
from masksub.core.loss import TargetKind
from masksub.core.seeds import MasksOfUpdates
from masksub.core.step import StepOutput, TwoBranchStep
from masksub.core.wrappers import without_gradient_sync

try:
    from timm.task import ClassificationTask
except ImportError as error:
    raise ImportError(
        "masksub.integrations.timm needs timm 1.0.23 or newer: pip install 'masksub[timm]' 'timm>=1.0.23'"
    ) from error

try:
    from timm.task import MultiLabelClassificationTask
except ImportError:
    MultiLabelClassificationTask = None

__all__ = ["MaskSubTask", "MultiLabelMaskSubTask"]

_logger = logging.getLogger(__name__)


class _TwoBranches(nn.Module):
    """What a task of timm becomes when it stands behind this class: ``class Task(_TwoBranches, TaskOfTimm)``."""

    criterion: Any
    verbose: bool

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[..., Tensor] | None = None,
        *timm_arguments: Any,
        sub: Branch | None = None,
        weight: float = 0.5,
        target: TargetKind | Literal["auto", "labels"] = "auto",
        sub_criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        seed: int = 0,
        log_interval: int = 50,
        **timm_options: Any,
    ) -> None:
        if log_interval < 0:
            raise ValueError(f"log_interval = {log_interval!r}: a number of updates, 0 for never")
        super().__init__(model, criterion, *timm_arguments, **timm_options)
        self._step_with = functools.partial(
            TwoBranchStep,
            sub=MaskSub(0.5) if sub is None else sub,
            mode="joint",
            target=target,
            sub_criterion=sub_criterion,
        )
        self._step = self._step_with(model, self.criterion, weight=weight)  # timm may have made the criterion
        self._masks = MasksOfUpdates(seed)
        self._accumulating = False
        self.log_interval = log_interval
        self.updates = 0

    @property
    def sub(self) -> Branch:
        """What the sub branch changes. Its rates may be changed between updates."""
        return self._step.sub

    @property
    def weight(self) -> float:
        """Share of the sub branch in the loss, 0 <= weight <= 1. May be changed between updates."""
        return self._step.weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._step.weight = value

    # The script of timm before 1.0.27 says torch.compile(task). That is to compile what happens below this frame, in
    # the model, and not the counting in it.
    @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Both branches of one batch, for one backward by the caller; evaluation is timm's own.

        Where gradients are off or all of the model is in eval mode, this is the task of timm: one branch, never masked.

        Side effects: as for ``TwoBranchStep.joint``; ``updates`` goes up by 1, but not inside of ``no_sync()``; each
        ``log_interval`` updates both losses are logged.

        Args:
            input: images (B, C, H, W).
            target: what the criterion takes: labels (B,), or soft or multiple labels (B, classes).

        Returns:
            "loss", which carries the graph of both branches; "output", the main branch's logits (B, classes); and for
            logging, detached, "loss_main" and "loss_sub". A loss that the weight leaves out is not there.

        Raises:
            TypeError: a NaFlex batch, a mapping of patches.
        """
        model = self._trained()
        if not (torch.is_grad_enabled() and any(module.training for module in model.modules())):
            result: dict[str, Tensor] = super().forward(input, target)
            return result
        if isinstance(input, Mapping):
            raise TypeError(
                f"{type(self).__name__} got a NaFlex batch, a mapping with {sorted(input)}; it takes images "
                f"(B, C, H, W), because images of a NaFlex batch have different numbers of patches to drop from"
            )
        if self.criterion is not self._step.criterion:  # replaced since, as timm's task allows
            self._step = self._step_with(model, self.criterion, weight=self.weight)
        self._step.model = model  # timm puts DistributedDataParallel or torch.compile around it
        out = self._step.joint(input, target, generator=self._generator(input.device))
        if not self._accumulating:
            self._log(out)
            self.updates += 1
        logits = out.sub_logits if out.logits is None else out.logits
        found = {"loss": out.loss, "output": logits, "loss_main": out.loss_main, "loss_sub": out.loss_sub}
        # Copies: timm's loop divides the loss in place where it accumulates, and the loss may be that of one branch.
        return {
            name: value.detach().clone() if name.startswith("loss_") else value
            for name, value in found.items()
            if value is not None
        }

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _generator(self, device: torch.device) -> torch.Generator:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return self._masks(self.updates, rank, device)

    def _log(self, out: StepOutput) -> None:
        if self.verbose and self.log_interval and self.updates % self.log_interval == 0:
            both = {"loss_main": out.loss_main, "loss_sub": out.loss_sub}
            found = ", ".join(f"{name} {value.item():.4g}" for name, value in both.items() if value is not None)
            _logger.info(f"MaskSub: update {self.updates}: {found}")

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """A context for the parts of an accumulated update but the last: gradients are not reduced.

        All parts of one update draw masks from the same generator. In a loop that accumulates without this context,
        each forward counts as an update: masks are others, and as random.
        """
        before, self._accumulating = self._accumulating, True
        try:
            of_timm: Callable[[], Any] | None = getattr(super(), "no_sync", None)
            with without_gradient_sync(self._trained()) if of_timm is None else of_timm():
                yield
        finally:
            self._accumulating = before

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """What timm's CheckpointSaver saves beside the model: the number of updates, once."""
        of_timm = getattr(super(), "get_task_state", None)
        state: dict[str, Any] = {} if of_timm is None else of_timm(module=module, ema=ema)
        return state if ema else {**state, "masksub": {"updates": self.updates}}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Go on where the checkpoint was saved; one of another task starts at update 0."""
        rest = dict(state or {})
        own = rest.pop("masksub", None)
        if (of_timm := getattr(super(), "load_task_state", None)) is not None:
            of_timm(rest or None, strict=strict, module=module, ema=ema)
        if ema:
            return
        if own is None:
            _logger.warning("the checkpoint has no state of a MaskSub task: masks are drawn as from update 0 on")
        self.updates = 0 if own is None else int(own["updates"])

    def _trained(self) -> nn.Module:
        """The model with whatever timm has put around it; under the name that this version of timm keeps it."""
        modules: dict[str, Any] = self._modules
        model: nn.Module = modules["trainable_module" if "trainable_module" in modules else "model"]
        return model


class MaskSubTask(_TwoBranches, ClassificationTask):  # type: ignore[misc]  # timm's classes are Any to mypy
    """timm's ClassificationTask with a second, masked branch in training (MaskSub, arXiv 2306.11339, section 3).

    Both branches go into one loss, of which the loop runs one backward ("joint"): activations of both are held until
    then. All else is timm's: ``prepare_distributed``, ``compile``, EMA, checkpoints; these hold the plain model.

    Args:
        model, criterion, timm_arguments, timm_options: as ``timm.task.ClassificationTask`` takes them.
        sub: what the sub branch changes; ``MaskSub(0.5)`` if None.
        weight: share of the sub branch in the loss, 0 <= weight <= 1; 0.5 in the paper. At 0 the task is timm's, bit
            for bit.
        target, sub_criterion: what the sub branch learns, as for ``TwoBranchStep``. "auto" knows torch's cross-entropy
            and BCE with logits and timm's LabelSmoothingCrossEntropy, SoftTargetCrossEntropy and BinaryCrossEntropy;
            other criteria need "softmax" or "sigmoid".
        seed: of the masks, which depend on it, on the number of the update and on the rank, and on nothing else. The
            same on all processes.
        log_interval: updates from one line in the log with both losses to the next, 0 for none. It goes to Python's
            ``logging``, as timm's own lines do; there is none with timm's ``verbose=False``.

    Attributes:
        updates: updates begun so far: forwards in training mode outside of ``no_sync()``. Saved as task state.

    Raises:
        ValueError: a value out of range, or ``target="auto"`` with a criterion that is not known.
    """


if MultiLabelClassificationTask is not None:

    class MultiLabelMaskSubTask(_TwoBranches, MultiLabelClassificationTask):  # type: ignore[misc]  # as above
        """timm's MultiLabelClassificationTask with a second, masked branch; arguments as for ``MaskSubTask``.

        Targets are dense floats (B, classes). The sub branch learns the main branch's sigmoid.
        """

        def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
            """As ``MaskSubTask``.

            Raises:
                ValueError: targets that are not floats (B, classes).
            """
            if target.ndim != 2 or not target.is_floating_point():
                raise ValueError(
                    f"target is {target.dtype} of shape {tuple(target.shape)}; this task needs floats (batch, classes)"
                )
            result: dict[str, Tensor] = super().forward(input, target)
            return result
else:

    def __getattr__(name: str) -> Any:
        if name == "MultiLabelMaskSubTask":
            raise ImportError(
                "MultiLabelMaskSubTask needs timm 1.0.31 or newer: pip install 'masksub[timm]' 'timm>=1.0.31'. "
                "MaskSubTask with timm.loss.BinaryCrossEntropy trains the same here"
            )
        raise AttributeError(name)
