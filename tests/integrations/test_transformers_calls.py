"""What a user's code does around the model's call. If these fail, the sub branch repeats another call than was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from masksub.integrations.transformers import MaskSubMixin
from tests.integrations.hf_trainers import InOrder, Ours, arguments, hf_vit, rows
from tests.integrations.reference import batches, same_weights, trained


class Raw(InOrder):
    """Makes the model's input in its training_step."""

    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        inputs["pixel_values"] = inputs.pop("raw") / 2
        return super().training_step(model, inputs, *args)


class MixedRaw(MaskSubMixin, Raw):
    pass


def test_a_training_step_that_makes_the_input(tmp_path: Path) -> None:
    """With accumulation, where masksub asks the loss before the first step: on what the training_step made."""
    data, model = batches(4), hf_vit()
    args = arguments(tmp_path, gradient_accumulation_steps=2, remove_unused_columns=False)
    MixedRaw(model=model, args=args, train_dataset=rows(data, "raw")).train()
    same_weights(model, trained([(x / 2, y) for x, y in data], updates=2, accumulation=2, model=hf_vit()))


class Whole(InOrder):
    """A training_step of its own altogether: keeps the logits, and a part of the model in eval."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        model.vit.embeddings.eval()
        inputs = self._prepare_inputs(inputs)
        loss, outputs = self.compute_loss(model, inputs, True, num_items_in_batch)
        assert not model.vit.embeddings.training and outputs.logits.shape == (8, 5)
        self.accelerator.backward(loss)
        return loss.detach()


class MixedWhole(MaskSubMixin, Whole):
    pass


def test_a_training_step_that_asks_for_the_outputs(tmp_path: Path) -> None:
    """In both branches; and after masksub has asked the loss, what is frozen is still frozen."""
    data, model = batches(2), hf_vit()
    MixedWhole(model=model, args=arguments(tmp_path), train_dataset=rows(data)).train()
    same_weights(model, trained(data, updates=2, model=hf_vit()))


class Taught(Ours):
    """Calls the model once more, without gradient."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            model(**inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_a_call_without_gradient_is_no_branch(tmp_path: Path) -> None:
    data, model = batches(1), hf_vit()
    Taught(model=model, args=arguments(tmp_path), train_dataset=rows(data), target="softmax").train()
    same_weights(model, trained(data, updates=1, model=hf_vit()))


def halving() -> nn.Module:
    """A model with a hook of the user's before it."""
    model = hf_vit()
    model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "pixel_values": kwargs["pixel_values"] / 2}), with_kwargs=True
    )
    return model


def test_a_hook_before_the_model_applies_once(tmp_path: Path) -> None:
    """The sub branch repeats the call, hook included: not what the hook made of it."""
    data, model = batches(1), halving()
    Ours(model=model, args=arguments(tmp_path), train_dataset=rows(data)).train()
    same_weights(model, trained([(x / 2, y) for x, y in data], updates=1, model=hf_vit()))
