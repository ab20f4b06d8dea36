"""What a sweep is: one object that the command, its worker processes, and the study have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from masksub.app.experiment.cells import Cell
from masksub.app.settings import Recipe

from .settings import Space, slug, with_settings

__all__ = ["Plan"]

NEUTRAL = {
    "data": ("cache", "cache_share", "workers"),
    "train": ("device", "log_every", "checkpoint_every", "keep_checkpoints", "tensorboard", "eval_batch_size"),
    "model": ("attention",),
}
"""Keys of a recipe in which workers of one study may differ: they change where and how, not what comes out."""


@dataclass(frozen=True)
class Plan:
    """What a sweep is. Goes to the worker processes as it is.

    Attributes:
        base: the recipe; its seed is the first one.
        space: what is varied.
        folder: of the runs.
        seeds: of each setting.
        sampler, pruner: see ``sweep.run_sweep``.
        trials: how many settings a sampler draws; None for a grid.
        url: of the storage.
        study: its name there.
        session: tells the commands apart that work on one study.
        beat, grace: see ``sweep_storage.open_storage``.
    """

    base: Recipe
    space: Space
    folder: Path
    seeds: int
    sampler: Literal["grid", "tpe", "random"]
    pruner: Literal["none", "median", "hyperband"]
    trials: int | None
    url: str
    study: str
    session: str = ""
    beat: int = 30
    grace: int = 120

    def facts(self) -> dict[str, Any]:
        """What must be the same for all that work on the study."""
        recipe = self.base.model_dump(mode="json")
        for section, keys in NEUTRAL.items():
            for key in keys:
                recipe[section].pop(key)
        for key in self.space.described():  # what is varied has no base value
            *sections, name = key.split(".")
            place: Any = recipe
            for section in sections:
                place = place.get(section, {}) if isinstance(place, dict) else {}
            if isinstance(place, dict):
                place.pop(name, None)
        return {
            "recipe": recipe,
            "space": self.space.described(),
            "seeds": self.seeds,
            "sampler": self.sampler,
            "pruner": self.pruner,
        }

    def cells(self, settings: dict[str, Any]) -> list[Cell]:
        """The runs of a setting, one for each seed.

        Raises:
            InputError: the recipe does not accept the values together.
        """
        recipe, name = with_settings(self.base, settings), slug(settings)
        seeds = range(self.base.seed, self.base.seed + self.seeds)
        return [Cell(recipe.model_copy(update={"seed": seed}), self.folder / f"{name}-s{seed}") for seed in seeds]
