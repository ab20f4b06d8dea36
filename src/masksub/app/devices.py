"""Device, precision and processes of a run: Accelerate's, with clear mistakes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from .errors import InputError
from .settings import Recipe

__all__ = ["create_accelerator"]


def create_accelerator(recipe: Recipe) -> Accelerator:
    """The recipe's device and precision; one process, or those that torchrun or accelerate started.

    Raises:
        InputError: a device or precision that this machine does not have.
    """
    wanted = recipe.train
    if wanted.device == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device = 'cuda': torch finds no CUDA device here; use 'auto' or 'cpu'")
    if wanted.precision == "fp16" and (wanted.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("train.precision = 'fp16': half precision needs a CUDA device; use 'bf16' or 'fp32'")
    AcceleratorState._reset_state()  # a process may make several runs, of different precision
    return Accelerator(
        mixed_precision="no" if wanted.precision == "fp32" else wanted.precision, cpu=wanted.device == "cpu"
    )
