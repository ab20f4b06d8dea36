"""The ways of training that an experiment puts side by side.

One table drives compare, the demonstration, the names in reports, and the documentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from masksub.app.cost import FlopTable
from masksub.app.data import open_source
from masksub.app.errors import InputError
from masksub.app.models import create_criterion, create_model
from masksub.app.settings import Recipe
from masksub.core.methods import METHODS

__all__ = ["ARMS", "DEFAULT_ARMS", "ArmKind", "Costs", "arm_recipe", "chosen_arms"]


@dataclass(frozen=True)
class ArmKind:
    """One way of training.

    Attributes:
        key: for the command line, and part of the run folder's name.
        method: key of METHODS.
        equal_compute: whether training is made longer until it costs as many operations as MaskSub's.
        name: for people.
    """

    key: str
    method: str
    name: str
    equal_compute: bool = False


ARMS: dict[str, ArmKind] = {
    arm.key: arm
    for arm in (
        ArmKind("plain", "plain", "plain"),
        ArmKind("plain-equal", "plain", "plain, equal compute", equal_compute=True),
        ArmKind("masksub", "masksub", "MaskSub"),
        ArmKind("direct-mask", "direct-mask", "masking in plain training"),
        ArmKind("true-label-sub", "true-label-sub", "sub branch with true labels"),
        ArmKind("self-distill", "self-distill", "self-distillation, no mask"),
        ArmKind("dropsub", "dropsub", "DropSub"),
        ArmKind("pathsub", "pathsub", "PathSub"),
    )
}
DEFAULT_ARMS = ("plain", "plain-equal", "masksub", "direct-mask")


def chosen_arms(names: list[str]) -> list[ArmKind]:
    """The arms of these names, in the order of the table.

    Raises:
        InputError: a name that is no arm, or none at all.
    """
    if wrong := [name for name in names if name not in ARMS]:
        raise InputError(f"there is no arm {', '.join(map(repr, wrong))}: choose from {', '.join(ARMS)}")
    if not names:
        raise InputError(f"no arm is chosen: choose from {', '.join(ARMS)}")
    return [arm for key, arm in ARMS.items() if key in names]


class Costs:
    """Training operations of one image under each method, from shapes.

    Args:
        base: the recipe.

    Raises:
        InputError: the model has nothing to mask, or the data can't be opened.
    """

    def __init__(self, base: Recipe) -> None:
        self._base = base
        self._classes = len(open_source(base.data, "train", base.seed).classes)
        with torch.random.fork_rng(devices=[]):
            untrained = base.changed("model", weights=None)  # operations do not depend on them
            self._model, self._criterion = create_model(untrained, self._classes), create_criterion(base)
        self._means: dict[str, float] = {}

    def per_image(self, method: str) -> float:
        """Operations of forward and backward for one image, mean over the schedules of ratio and weight."""
        if method not in self._means:
            recipe = self._base.model_copy(update={"method": method})
            table = FlopTable(self._model, self._criterion, recipe, self._classes)
            places = [(place + 0.5) / POINTS for place in range(POINTS)]
            settings = [(recipe.sub.ratio_schedule(p), recipe.sub.weight_schedule(p)) for p in places]
            total = sum(table.per_image(*METHODS[method].settings(*each)) for each in settings)
            self._means[method] = total / POINTS
        return self._means[method]

    def ratio(self, method: str) -> float:
        """Operations of a step over those of a plain step."""
        return self.per_image(method) / self.per_image("plain")


POINTS = 200
"""Points at which a schedule of ratio or weight is read; equal ones are counted once."""


def arm_recipe(base: Recipe, arm: ArmKind, seed: int, costs: Costs) -> Recipe:
    """The recipe of one run of a comparison: ``base`` but for method, seed and, at equal compute, the epochs.

    The learning-rate schedule is stretched with the epochs (its warm-up stays as long as it is), and so is the spacing
    of the evaluations, so that every arm is evaluated as often.
    """
    recipe = base.model_copy(update={"method": arm.method, "seed": seed})
    if arm.equal_compute:
        stretch = costs.ratio("masksub")
        recipe = recipe.changed("train", epochs=base.train.epochs * stretch, eval_every=base.train.eval_every * stretch)
    return recipe
