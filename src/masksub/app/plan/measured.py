"""The speed of one device, measured here."""

from __future__ import annotations

import torch

from masksub.app.experiment.estimate import UPDATES, measure, sizes
from masksub.app.settings import Recipe

__all__ = ["measure_here"]


def measure_here(recipe: Recipe) -> tuple[float, str]:
    """Images a second of the recipe on this machine's device, and what that device is.

    Side effects: a few updates of training on the recipe's data; nothing is written.

    Raises:
        InputError: the data are not here, or the device can't do what the recipe asks.
    """
    seconds, _ = measure(recipe.changed("train", global_batch_size=None, accumulate=1), *sizes(recipe))
    images = recipe.train.batch_size
    on_gpu = recipe.train.device != "cpu" and torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else f"a CPU with {torch.get_num_threads()} thread(s)"
    return images / seconds, f"median of {UPDATES} updates of one batch, measured here on {name}"
