"""Going on with a run: what must be as it was, what may change, and what that costs in exactness."""

from __future__ import annotations

from .errors import InputError
from .processes import Processes
from .runs import RunFolder, differing_values, told_difference
from .settings import Recipe

__all__ = ["APPROXIMATE", "FREE", "Continuation", "as_recorded", "continuation", "see_alike"]

FREE = frozenset(
    (
        "data.cache_share", "data.workers", "data.on_error", "data.max_skipped",
        "train.checkpoint_every", "train.keep_checkpoints", "train.checkpoint_in_background",
        "train.on_checkpoint_error", "train.on_nan", "train.max_nan", "train.max_overflows",
        "train.timeout_seconds", "train.tensorboard",
    )
)  # fmt: skip
"""Keys that a resumed run may have otherwise and still end as the unbroken one, or that say what to do in a fault."""
APPROXIMATE = frozenset(
    (
        "data.train", "data.val", "data.root", "data.cache", "model.attention",
        "train.batch_size", "train.accumulate", "train.global_batch_size", "train.precision", "train.compile",
        "train.recompute", "train.shard", "train.device", "train.eval_batch_size",
    )
)  # fmt: skip
"""Keys that may change on ``--approximate``: the training is the same in what it does, not in each number."""
LOST = (
    "which process sees which image, the masks, augmentation and dropout drawn on each, and the order of sums; "
    "images of an update, learning rates and schedules stay as they are"
)
"""What is no longer exact with another number of processes."""


class Continuation:
    """How a run goes on.

    Args:
        recipe: in force from here.
        changed: dotted keys with the recorded and the new value.
        exact: whether the run ends as the unbroken one, bit for bit (on a CPU, with the same number of threads).
    """

    def __init__(self, recipe: Recipe, changed: list[str], exact: bool) -> None:
        self.recipe, self.changed, self.exact = recipe, changed, exact


def as_recorded(recipe: Recipe, run: RunFolder) -> Recipe:
    """The recipe in force when a run goes on exactly with this recipe.

    Raises:
        InputError: it differs from the recorded one in more than a resumed run may change.
    """
    return continuation(recipe, run, processes=None, approximate=None).recipe


def continuation(recipe: Recipe, run: RunFolder, *, processes: int | None, approximate: bool | None) -> Continuation:
    """What a run goes on with.

    Args:
        recipe: as it is asked for now.
        run: a run that was begun.
        processes: that train now; None: as many as before.
        approximate: the user accepts a continuation that is not exact; None: the command has no such choice.

    Raises:
        InputError: a difference that is not allowed, each with the recorded value and the new one, or a number of
            processes that can't make the same updates.
    """
    recorded = RunFolder.existing(run.path).recipe()
    before = run.environment()
    processes_before = (before["resumed"] or [before])[-1]["processes"]
    processes = processes or processes_before
    then = recorded.train
    images = then.global_batch_size or then.batch_size * then.accumulate * processes_before
    recipe = _choices_of(recorded, recipe, images, processes)
    differing = list(differing_values(recorded.model_dump(), recipe.model_dump()))
    refused = [each for each in differing if each[0] not in FREE | APPROXIMATE]
    inexact = [each for each in differing if each[0] in APPROXIMATE]
    if refused or (inexact and not approximate):
        told = "\n  ".join(told_difference(each) for each in refused + inexact)
        if approximate is None:
            hint = "Give the changed recipe a folder of its own with --out FOLDER, or take the changes back."
        elif refused:
            hint = (
                "Train the changed recipe in another folder (--out FOLDER, without --resume), or take the changes back."
            )
        else:
            hint = "With --approximate it goes on, but not bit for bit as the unbroken run would."
        raise InputError(
            f"{run.path} was started with another recipe and can't be resumed with this one. "
            f"Differing (run -> now):\n  {told}\n{hint}"
        )
    if processes != processes_before and not approximate:
        raise InputError(
            f"{run.path} was trained by {processes_before} process(es) and can't go on exactly with {processes}. Start "
            f"{processes_before}, or go on with --resume --approximate. No longer exact would be: {LOST}"
        )
    if inexact or processes != processes_before:
        # An update is the same number of images as before, whoever computes them.
        recipe = recipe.changed("train", accumulate=1, global_batch_size=images)
        try:
            recipe.train.parts(processes)
        except InputError as error:
            raise InputError(f"{run.path} makes updates of {images} images. {error}") from error
    changed = [told_difference(each) for each in differing_values(recorded.model_dump(), recipe.model_dump())]
    return Continuation(recipe, changed, not inexact and processes == processes_before)


def _choices_of(recorded: Recipe, recipe: Recipe, images: int, processes: int) -> Recipe:
    """With the choices that were made when the run began; others would draw other random numbers or round otherwise."""
    if recipe.model.attention == "auto":
        recipe = recipe.changed("model", attention=recorded.model.attention)
    if recipe.data.cache == "auto":
        recipe = recipe.changed("data", cache=recorded.data.cache)
    # A run that went on with other processes has the size of its updates written down.
    now, then = recipe.train, recorded.train
    same = now.global_batch_size is None and now.batch_size * now.accumulate * processes == images
    if then.global_batch_size is not None and same:
        recipe = recipe.changed("train", accumulate=1, global_batch_size=then.global_batch_size)
    return recipe


def see_alike(processes: Processes, run: RunFolder, going_on: Continuation | None, recipe: Recipe) -> None:
    """Before anything is done in common: one that begins anew beside others that go on would train other weights.

    Raises:
        InputError: on all processes, if they differ.
    """
    values = recipe.model_dump(mode="json")
    seen = processes.gather((going_on is not None, values))
    begun = [str(rank) for rank, (found, _) in enumerate(seen) if found]
    what = (
        f"process(es) {', '.join(begun)} of {len(seen)} find a run to go on with" if 0 < len(begun) < len(seen) else ""
    )
    for rank, (_, other) in enumerate(seen):
        differing = [each for each in differing_values(seen[0][1], other) if each[0] not in FREE]
        if differing and not what:
            what = f"process 0 and {rank} have different recipes: {'; '.join(map(told_difference, differing))}"
    if what:
        raise InputError(
            f"{run.path}: the processes do not see the same run folder and recipe ({what}). Keep both on storage that "
            f"all machines share, at the same path"
        )
