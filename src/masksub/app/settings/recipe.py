"""The whole recipe, and what must hold between its sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from masksub.core.methods import METHODS

from .base import Settings
from .data import Augment, Data
from .model import Loss, Model
from .sub import Sub
from .training import Optim, Train

__all__ = ["Recipe"]


class Recipe(Settings):
    """Everything that decides a training run."""

    method: Literal[
        "plain", "masksub", "direct-mask", "true-label-sub", "self-distill", "dropsub", "pathsub", "cosub"
    ] = "masksub"
    """What the training step does; see masksub.METHODS."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random."""
    data: Data = Data()
    augment: Augment = Augment()
    model: Model
    sub: Sub = Sub()
    loss: Loss = Loss()
    optim: Optim = Optim()
    train: Train

    def changed(self, section: str, **values: Any) -> Recipe:
        """A copy with other values in one section; they are not validated."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        assert self.method in METHODS
        mistakes = []
        if self.data.name == "folder" and self.data.train is None:
            mistakes.append('data.train is missing: data.name "folder" needs a folder or archive to train on')
        if self.data.name == "folder" and self.data.val is None and self.data.val_share is None:
            mistakes.append(
                'data.val is missing: data.name "folder" needs a folder or archive to validate on, or data.val_share '
                "to hold out a share of the training images"
            )
        if self.data.val_share is not None and self.data.name != "folder":
            mistakes.append(
                f'data.val_share = {self.data.val_share}: only for data.name "folder"; set data.val_share=null'
            )
        elif self.data.val_share is not None and self.data.val is not None:
            mistakes.append(
                f"data.val_share = {self.data.val_share}: holds out training images in place of data.val; set "
                f"data.val_share=null to use data.val, or data.val=null to hold out"
            )
        for name, values in (("mean", self.data.mean), ("std", self.data.std)):
            if values is not None and len(values) != self.data.channels:
                mistakes.append(
                    f"data.{name} = {list(values)}: data.channels = {self.data.channels} needs as many numbers"
                )
        if self.data.std is not None and min(self.data.std, default=1) <= 0:
            mistakes.append(f"data.std = {list(self.data.std)}: each must be above 0")
        if self.method == "cosub" and self.sub.bn == "main":
            mistakes.append('sub.bn = "main": cosub has no main branch; use "shared"')
        if (self.augment.mixup or self.augment.cutmix) and self.train.batch_size % 2:
            mistakes.append(f"train.batch_size = {self.train.batch_size}: mixup and cutmix need an even number")
        if self.loss.target_threshold == 0 and self.loss.smoothing > 0:
            mistakes.append(
                f"loss.smoothing = {self.loss.smoothing}: with loss.target_threshold = 0 it makes each class a target; "
                f"leave one of them out"
            )
        if self.train.global_batch_size is not None and self.train.accumulate != 1:
            mistakes.append(
                f"train.accumulate = {self.train.accumulate}: it follows from train.global_batch_size = "
                f"{self.train.global_batch_size}; give one of the two"
            )
        if self.train.shard == "full" and self.train.compile:
            mistakes.append('train.compile = true: not together with train.shard = "full"')
        if self.train.shard == "full" and self.train.precision == "fp16":
            mistakes.append('train.precision = "fp16": not together with train.shard = "full"; use "bf16" or "fp32"')
        if self.data.name == "shards" and (self.data.train is None or self.data.val is None):
            mistakes.append('data.train and data.val: data.name "shards" needs tar shards for both')
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self
