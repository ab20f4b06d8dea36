"""What a recipe may say: every key, its type, its range and its default.

The classes are the one source for validation, for the JSON schema that editors use, and for the resolved
``recipe.yaml`` of a run folder.
"""

from .data import Augment, Data
from .model import Loss, Model
from .recipe import Recipe
from .sub import Sub
from .training import Optim, Train

__all__ = ["Augment", "Data", "Loss", "Model", "Optim", "Recipe", "Sub", "Train"]
