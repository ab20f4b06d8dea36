"""What a plan needs to know of a recipe's model: counted from shapes, on the meta device, without data or weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from masksub.app.cost import FlopTable
from masksub.app.errors import InputError
from masksub.app.models import create_criterion, create_model, create_optimizer
from masksub.app.settings import Recipe
from masksub.core.adapter import find_adapter
from masksub.core.methods import METHODS
from masksub.core.step import TwoBranchStep

from .activations import Held, blocks_of, held_by

__all__ = ["Shapes", "can_recompute", "count_shapes", "meta_model", "optimizer_bytes", "step_of"]

POINTS = 20
"""Points of the training at which schedules of ratio and weight are read; equal ones are counted once."""


@dataclass(frozen=True)
class Shapes:
    """Counts of one recipe; bytes are those of one whole copy, operations those of one image.

    Attributes:
        parameters: weights, number of elements.
        weights: bytes of weights and buffers.
        gradients: bytes of the gradients, fp32.
        block: bytes of the weights of the largest block.
        rest: bytes of the weights outside of all blocks.
        blocks: how many blocks there are.
        optimizer: bytes of the optimizer's state after its first step.
        main: operations of the main branch, forward and backward; 0 where it is not run.
        sub: operations of the sub branch; 0 where there is none.
        backward: share of a branch's operations that its backward has, with blocks that it runs again.
        main_forward_only: the main branch is a teacher, without backward.
        plain: operations of a plain step.
        held: what a step holds for backward, with recompute as the recipe says.
        plain_kept: activations that a plain step holds.
        block_kept: with recompute: most that one block keeps when it is run again; else 0.
        batch: images for which ``held`` was counted.
        how: how the model is masked: "drop", "fill" or "pixels". Counts that were committed before do not have it.
    """

    parameters: int
    weights: int
    gradients: int
    block: int
    rest: int
    blocks: int
    optimizer: int
    main: float
    sub: float
    backward: float
    main_forward_only: bool
    plain: float
    held: Held
    plain_kept: int
    block_kept: int
    batch: int
    how: str = "drop"


def meta_model(recipe: Recipe, classes: int) -> nn.Module:
    """The recipe's model without values.

    Raises:
        InputError: timm can't build it, or it can't recompute as the recipe asks.
    """
    with torch.device("meta"):
        return create_model(recipe.changed("model", weights=None), classes).train()  # shapes do not depend on them


def can_recompute(recipe: Recipe, classes: int) -> bool:
    """Whether a training would accept ``train.recompute`` for this model and method."""
    try:
        meta_model(recipe.changed("train", recompute=True), classes)
    except InputError:
        return False
    return True


def optimizer_bytes(recipe: Recipe, model: nn.Module) -> int:
    """Bytes of the optimizer's state: it is made for the meta model, steps once, and its tensors are counted.

    Raises:
        InputError: no such optimizer, or one that reads values.
    """
    optimizer = create_optimizer(recipe, model)
    try:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"optim.name = {recipe.optim.name!r}: its state can't be counted from shapes, for its step reads values "
            f"({str(error).splitlines()[0]}); plan with one of the same state, such as adamw (two tensors a weight)"
        ) from error
    finally:
        for parameter in model.parameters():
            parameter.grad = None
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(_bytes(value) for value in values if isinstance(value, Tensor))


def count_shapes(recipe: Recipe, classes: int) -> Shapes:
    """All counts of a recipe.

    Raises:
        InputError: the model can't be built or masked, or its optimizer's state can't be counted.
    """
    model, criterion = meta_model(recipe, classes), create_criterion(recipe)
    optimizer = optimizer_bytes(recipe, model)
    own = [*model.parameters(), *model.buffers()]
    blocks = blocks_of(model)
    inside = {id(p) for block in blocks for p in block.parameters()}
    flops = _mean_flops(recipe, model, criterion, classes)
    plain_recipe = recipe.model_copy(update={"method": "plain"})
    plain = once = FlopTable(model, criterion, plain_recipe, classes).per_image(0.0, 0.0)
    # The largest sub branch; a weight in the middle, for at 0 or 1 a branch would be left out.
    ratio, weight = METHODS[recipe.method].settings(
        min(recipe.sub.ratio_schedule.bounds), sum(recipe.sub.weight_schedule.bounds) / 2
    )
    step = step_of(recipe, criterion, classes, ratio, weight)
    size, batch = recipe.data.image_size, recipe.train.batch_size
    shape = (batch, recipe.data.channels, size, size)
    held = held_by(model, step, shape, precision=recipe.train.precision)
    plain_step = step_of(plain_recipe, criterion, classes, 0.0, 0.0)
    plain_held = held_by(model, plain_step, shape, precision=recipe.train.precision)
    block_kept = 0
    if recipe.train.recompute:
        model = meta_model(recipe.changed("train", recompute=False), classes)
        block_kept = held_by(model, step, shape, precision=recipe.train.precision).block or 0
        once = FlopTable(model, criterion, plain_recipe, classes).per_image(0.0, 0.0)
    runs_main = weight < 1 or METHODS[recipe.method].target != "labels"
    teacher = weight == 1 and runs_main
    forward = once / 3
    main = forward if teacher else min(plain, flops) if runs_main else 0.0
    return Shapes(
        parameters=sum(p.numel() for p in model.parameters()),
        weights=sum(map(_bytes, own)),
        gradients=sum(_bytes(p) for p in model.parameters() if p.requires_grad),
        block=max((sum(map(_bytes, block.parameters())) for block in blocks), default=0),
        rest=sum(_bytes(p) for p in own if isinstance(p, nn.Parameter) and id(p) not in inside),
        blocks=len(blocks),
        optimizer=optimizer,
        main=main,
        sub=flops - main,
        backward=1 - forward / plain,
        main_forward_only=teacher,
        plain=plain,
        held=held,
        plain_kept=plain_held.kept[0],
        block_kept=block_kept,
        batch=batch,
        how=find_adapter(model).how,
    )


def _mean_flops(recipe: Recipe, model: nn.Module, criterion: nn.Module, classes: int) -> float:
    """Operations of a step for one image, mean over the schedules of ratio and weight."""
    table, method = FlopTable(model, criterion, recipe, classes), METHODS[recipe.method]
    places = [(number + 0.5) / POINTS for number in range(POINTS)]
    settings = [method.settings(recipe.sub.ratio_schedule(p), recipe.sub.weight_schedule(p)) for p in places]
    return sum(table.per_image(*each) for each in settings) / POINTS


def step_of(
    recipe: Recipe, criterion: nn.Module, classes: int, ratio: float, weight: float
) -> Callable[[nn.Module, Tensor, Any], None]:
    """The recipe's step, as the trainer makes it."""
    method, wanted = METHODS[recipe.method], recipe.sub
    sub = method.branch(ratio, unit=wanted.unit, p=wanted.p, efficient=wanted.efficient, bn=wanted.bn)
    soft = not isinstance(criterion, nn.CrossEntropyLoss)

    def step(model: nn.Module, x: Tensor, backward: Any) -> None:
        y = torch.zeros((len(x), classes) if soft else (len(x),), device=x.device)
        two = TwoBranchStep(model, criterion, sub=sub, weight=weight, mode=wanted.mode, **method.step_arguments())
        two(x, y if soft else y.long(), backward=backward)

    return step


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
