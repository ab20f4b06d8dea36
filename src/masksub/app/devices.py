"""Device, precision and processes of a run: Accelerate's, with clear mistakes."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

from .errors import InputError, StoppedError
from .settings import Recipe, Train

__all__ = ["create_accelerator", "leave_group", "refuse_copies"]

_OTHER_LAUNCHES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
"""What ``accelerate launch`` says where its own configuration asks for one of these."""


def create_accelerator(recipe: Recipe) -> Accelerator:
    """The recipe's device and precision; one process, or those that torchrun or accelerate started.

    Side effects: where there are several processes, joins their group, whose operations fail after
    ``train.timeout_seconds``. A group that was joined before in this process stays as it is, with its timeout.

    Raises:
        InputError: a device or precision that this machine does not have, or a configuration of ``accelerate launch``
            that contradicts the recipe.
        StoppedError: the processes do not find each other.
    """
    wanted = recipe.train
    if wanted.device == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device = 'cuda': torch finds no CUDA device here; use 'auto' or 'cpu'")
    if wanted.precision == "fp16" and (wanted.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("train.precision = 'fp16': half precision needs a CUDA device; use 'bf16' or 'fp32'")
    for name in _OTHER_LAUNCHES:
        if os.environ.get(name, "false").lower() in ("true", "1", "yes"):
            raise InputError(
                f"{name} is set by the configuration of accelerate launch: sharding is the recipe's choice "
                f"(train.shard = 'none' or 'full'); start with accelerate launch --multi_gpu, or with torchrun"
            )
    # A process may make several runs, of different precision. The process group belongs to Accelerate's PartialState,
    # which is left: a group can be joined only once.
    AcceleratorState._reset_state()
    started = os.environ.get("WORLD_SIZE", "1")
    cpu = wanted.device == "cpu"
    if wanted.device == "auto" and started != "1":
        # Accelerate takes several processes without GPUs for as many trainings, unless it is told.
        cpu = not torch.accelerator.is_available()
    try:
        accelerator = _accelerator(wanted, cpu)
    except RuntimeError as error:
        if started == "1":
            raise
        raise StoppedError(
            f"the {started} processes of this training did not find each other within train.timeout_seconds = "
            f"{wanted.timeout_seconds:g}: {str(error).splitlines()[0]}"
        ) from error
    if str(accelerator.num_processes) != started:
        raise InputError(
            f"WORLD_SIZE = {started}, but {accelerator.num_processes} process(es) can train together with "
            f"train.device = {wanted.device!r} ({accelerator.device}): several processes need CUDA devices or 'cpu'"
        )
    return accelerator


def _accelerator(wanted: Train, cpu: bool) -> Accelerator:
    return Accelerator(
        mixed_precision="no" if wanted.precision == "fp32" else wanted.precision,
        cpu=cpu,
        # Else a number in accelerate's configuration divides each loss: the recipe accumulates by itself.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=wanted.timeout_seconds))],
    )


def leave_group() -> None:
    """At the end of a process whose trainings went well: leave the group of processes while Python is still whole.

    Threads of a group that is left to the end of the interpreter may ask for its lock when it is no more, and the
    process ends with SIGABRT. Not after an error: where another process is gone, waiting for threads that wait for it
    could take ``train.timeout_seconds``.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # the wrapped model, which is part of cycles, holds the group, whose end alone joins its threads
        time.sleep(0.05)  # torch's caches hold the group of a sharded model: its threads at least get the lock now


def refuse_copies(environment: Mapping[str, str] = os.environ) -> None:
    """Before one run is trained: notice processes that srun started and that don't know of each other.

    Each of them would train the whole run, in the same folder. Workers of a sweep may be started so: each trains runs
    of its own.

    Args:
        environment: variables of this process.

    Raises:
        InputError: several tasks of one SLURM step, without what torchrun or accelerate tell a process.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks.isdecimal() and int(tasks) > 1 and not {"RANK", "WORLD_SIZE"} <= environment.keys():
        raise InputError(
            f"SLURM_STEP_NUM_TASKS = {tasks}, but RANK and WORLD_SIZE are not set: srun started {tasks} processes that "
            f"would each train the whole run. Have srun start one task a node, and torchrun in it the processes "
            f"(srun --ntasks-per-node=1 torchrun --nproc-per-node=8 --no-python masksub train ...)"
        )
