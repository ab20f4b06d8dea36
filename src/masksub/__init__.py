"""masksub: strong masking inside supervised training.

MaskSub (Heo et al., "Masking meets Supervision: A Strong Learning Alliance", CVPR 2025, arXiv 2306.11339) as a library
for PyTorch. Importing this package loads torch and nothing else.
"""

from masksub import adapters as adapters
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
