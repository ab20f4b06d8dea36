"""Images in, normalised batches out: where they come from, how they are decoded, held, augmented and ordered."""

from masksub.app.data.augment import normalise
from masksub.app.data.batches import TrainBatches
from masksub.app.data.decode import ImageError, load_image, prepare
from masksub.app.data.eval_batches import EvalBatches
from masksub.app.data.sources import Source, open_data, open_path, open_source
from masksub.app.data.supply import Supply

__all__ = [
    "EvalBatches",
    "ImageError",
    "Source",
    "Supply",
    "TrainBatches",
    "load_image",
    "normalise",
    "open_data",
    "open_path",
    "open_source",
    "prepare",
]
