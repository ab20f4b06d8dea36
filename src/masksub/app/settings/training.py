"""Sections optim and train."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from masksub.app.errors import InputError

from .base import Settings

__all__ = ["Optim", "Train"]


class Optim(Settings):
    """The optimizer, by its name in timm, and its schedule over updates."""

    name: str = "adamw"
    """timm's name of the optimizer."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay; biases, norms and what the model exempts take none."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each layer to the one below."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; None for no clipping."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """More arguments of the optimizer (betas, eps, momentum)."""
    schedule: Literal["cosine", "constant", "poly", "step", "tanh"] = "cosine"
    """timm's name of the learning-rate schedule."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    """Epochs of linear warm-up, part of the training."""
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate at the first update of the warm-up."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate at the end."""


class Train(Settings):
    """The loop."""

    epochs: Annotated[float, Field(gt=0)]
    """Passes over the training images; a fraction is allowed."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images of one forward on one device."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients make one update."""
    global_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images of one update on all devices together; None: batch_size x accumulate x devices. If given, accumulate
    follows from it, so that an update is the same on any number of devices."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward; weights stay in fp32."""
    compile: bool = False
    """torch.compile the model."""
    recompute: bool = False
    """Run blocks again in backward in place of keeping their activations: less memory, about a third more time."""
    shard: Literal["none", "full"] = "none"
    """With several processes: "none" keeps the whole model on each (DDP); "full" shards weights, gradients and
    optimizer over them (FSDP2)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; "auto" takes an accelerator if there is one."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the weights; None for none. The average is then what is evaluated."""
    log_every: Annotated[int, Field(ge=1)] = 50
    """Updates between two lines of metrics."""
    eval_every: Annotated[float, Field(gt=0)] = 1
    """Epochs between two evaluations; the last update is always evaluated."""
    eval_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images of one forward of the evaluation; None: batch_size."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Updates between two checkpoints; None: one an epoch."""
    checkpoint_in_background: bool = True
    """Write checkpoints while training goes on."""
    on_checkpoint_error: Literal["stop", "continue"] = "stop"
    """A checkpoint that can't be written (disk full): stop, or warn and go on. Older ones stay either way."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop before the optimizer step, or leave the update out and count it."""
    max_nan: Annotated[int, Field(ge=0)] = 20
    """With on_nan "skip": stop after this many updates left out."""
    max_overflows: Annotated[int, Field(ge=1)] = 50
    """For fp16: stop after this many updates in a row that overflowed and were left out."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 600
    """With several processes: stop when one has not answered the others for so long."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    """Checkpoints that are kept; the last but one is what a damaged last one falls back to."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.jsonl."""

    def parts(self, processes: int) -> int:
        """Batches of each process whose gradients make one update.

        Raises:
            InputError: global_batch_size is no multiple of what the processes take at once.
        """
        if self.global_batch_size is None:
            return self.accumulate
        at_once = self.batch_size * processes
        if self.global_batch_size % at_once:
            raise InputError(
                f"train.global_batch_size = {self.global_batch_size}: no multiple of the {at_once} images that "
                f"{processes} process(es) with train.batch_size = {self.batch_size} take at once; change one of them"
            )
        return self.global_batch_size // at_once
