"""masksub: strong masking inside supervised training.

MaskSub (Heo et al., "Masking meets Supervision: A Strong Learning Alliance", CVPR 2025, arXiv 2306.11339) as a library
for PyTorch. Importing this package loads nothing else; the first use of one of its names loads torch and the core, with
the adapters of all model families.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what editors and type checkers see; at run time __getattr__ below answers
    from masksub import adapters as adapters
    from masksub import core as core
    from masksub.adapters.named_tokens import register, unregister
    from masksub.core import schedule as schedule
    from masksub.core.branches import Branch, MaskSub
    from masksub.core.dropouts import DropSub
    from masksub.core.filling import add_mask_token, without_mask_token
    from masksub.core.inspect import Inspection, inspect
    from masksub.core.loss import relaxed_target
    from masksub.core.masking import sample_keep, sample_keep_blocks
    from masksub.core.methods import METHODS
    from masksub.core.pathsub import CoSub, PathSub
    from masksub.core.seeds import MasksOfUpdates
    from masksub.core.sentences import set_special_tokens
    from masksub.core.step import StepOutput, TwoBranchStep

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Branch",
    "CoSub",
    "DropSub",
    "Inspection",
    "MaskSub",
    "MasksOfUpdates",
    "PathSub",
    "StepOutput",
    "TwoBranchStep",
    "__version__",
    "add_mask_token",
    "inspect",
    "register",
    "relaxed_target",
    "sample_keep",
    "sample_keep_blocks",
    "schedule",
    "set_special_tokens",
    "unregister",
    "without_mask_token",
]

# Where each name comes from.
_MODULES = {"adapters": "masksub.adapters", "core": "masksub.core", "schedule": "masksub.core.schedule"}
_PLACES = {
    "METHODS": "masksub.core.methods",
    "Branch": "masksub.core.branches",
    "CoSub": "masksub.core.pathsub",
    "DropSub": "masksub.core.dropouts",
    "Inspection": "masksub.core.inspect",
    "MaskSub": "masksub.core.branches",
    "MasksOfUpdates": "masksub.core.seeds",
    "PathSub": "masksub.core.pathsub",
    "StepOutput": "masksub.core.step",
    "TwoBranchStep": "masksub.core.step",
    "add_mask_token": "masksub.core.filling",
    "inspect": "masksub.core.inspect",
    "register": "masksub.adapters.named_tokens",
    "relaxed_target": "masksub.core.loss",
    "sample_keep": "masksub.core.masking",
    "sample_keep_blocks": "masksub.core.masking",
    "set_special_tokens": "masksub.core.sentences",
    "unregister": "masksub.adapters.named_tokens",
    "without_mask_token": "masksub.core.filling",
}

if not TYPE_CHECKING:  # a type checker would take any misspelt name for one that comes from here

    def __getattr__(name: str) -> object:
        """Load all of the library when the first of its names is asked for."""
        if name not in _MODULES and name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = {each: importlib.import_module(place) for each, place in _MODULES.items()}
        found |= {each: getattr(importlib.import_module(place), each) for each, place in _PLACES.items()}
        globals().update(found)
        return found[name]


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *_MODULES, *_PLACES})
