"""What a plan assumes of machines: data-sheet values of devices; links, disks and utilisation as stated."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from masksub.app.errors import InputError

__all__ = ["DEVICES", "Device", "Machine", "create_machine"]


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it.

    Attributes:
        name: for the command line.
        memory: bytes.
        half: peak operations a second in bf16 and fp16, matrix units, without sparsity (data sheets of Hopper
            print twice that, with sparsity).
        single: peak operations a second in fp32, without TF32.
        nvlink: bytes a second to the other GPUs of a node, both directions together, as data sheets count.
        source: where the values are from.
    """

    name: str
    memory: float
    half: float
    single: float
    nvlink: float
    source: str


_A100 = "NVIDIA A100 data sheet, SXM, without sparsity"
_H100 = "NVIDIA H100 data sheet, SXM, without sparsity"
_H200 = "NVIDIA H200 data sheet, SXM, without sparsity"

DEVICES = {
    device.name: device
    for device in (
        Device("a100-40gb", 40e9, 312e12, 19.5e12, 600e9, _A100),
        Device("a100-80gb", 80e9, 312e12, 19.5e12, 600e9, _A100),
        Device("h100-80gb", 80e9, 989e12, 67e12, 900e9, _H100),
        Device("h200-141gb", 141e9, 989e12, 67e12, 900e9, _H200),
    )
}


@dataclass(frozen=True)
class Machine:
    """The machines of a plan. Every figure is an assumption that is printed and can be changed.

    Attributes:
        device: name of the GPU.
        source: where its values are from.
        per_node: GPUs of a node.
        memory: memory of a GPU in GB (1e9 bytes).
        peak: operations of a GPU at the recipe's precision, in TFLOP/s.
        utilisation: share of the peak that training reaches.
        nvlink: link to the GPUs of the same node, both directions together, in GB/s.
        network: link of a node to the others, each direction, in Gbit/s.
        links: share of a link's data-sheet bandwidth that transfers reach.
        reserve: share of the memory that is kept free for the CUDA context, workspaces and fragments.
        disk: bandwidth of writing checkpoints, in GB/s.
    """

    device: str
    source: str
    per_node: int = 8
    memory: float = 0.0
    peak: float = 0.0
    utilisation: float = 0.4
    nvlink: float = 0.0
    network: float = 400.0
    links: float = 0.8
    reserve: float = 0.1
    disk: float = 1.0

    def bandwidth(self, gpus: int) -> float:
        """Bytes a second and direction over the slowest link of a ring through this many GPUs."""
        within = self.nvlink * 1e9 / 2
        between = self.network * 1e9 / 8
        return self.links * (within if gpus <= self.per_node else min(within, between))

    def nodes(self, gpus: int) -> int:
        """Nodes of this many GPUs."""
        return -(-gpus // self.per_node)


CHANGEABLE = ("memory", "peak", "nvlink", "links", "reserve", "disk")
"""Keys of --assume; utilisation, network and per_node have options of their own."""

_SHARES = ("utilisation", "links", "reserve")


def create_machine(
    device: str, precision: str, *, per_node: int, utilisation: float, network: float, assume: Sequence[str] = ()
) -> Machine:
    """The machine of a plan.

    Args:
        device: key of DEVICES.
        precision: of the recipe; decides the peak.
        per_node: GPUs of a node.
        utilisation: share of the peak that training reaches.
        network: Gbit/s of a node.
        assume: items ``KEY=VALUE`` for what else is to be changed.

    Raises:
        InputError: an unknown device or key, or a value outside its range.
    """
    if device not in DEVICES:
        near = difflib.get_close_matches(device, DEVICES, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"--device {device}: known are {', '.join(DEVICES)}{hint}")
    known = DEVICES[device]
    machine = Machine(
        device,
        known.source,
        per_node=per_node,
        memory=known.memory / 1e9,
        peak=(known.single if precision == "fp32" else known.half) / 1e12,
        nvlink=known.nvlink / 1e9,
        utilisation=utilisation,
        network=network,
    )
    changes: dict[str, Any] = dict(map(_assumption, assume))
    machine = replace(machine, **changes)
    for name in (field.name for field in fields(Machine)):
        value, option = getattr(machine, name), f"--assume {name}=" if name in CHANGEABLE else f"--{name} "
        if isinstance(value, str):
            continue
        if name == "reserve" and not 0 <= value < 1:
            raise InputError(f"{option}{value:g}: must be at least 0 and below 1")
        if name in _SHARES and name != "reserve" and not 0 < value <= 1:
            raise InputError(f"{option}{value:g}: must be above 0 and at most 1")
        if name not in _SHARES and not 0 < value < float("inf"):
            raise InputError(f"{option.replace('_', '-')}{value:g}: must be above 0")
    return machine


def _assumption(item: str) -> tuple[str, float]:
    key, _, value = item.partition("=")
    if key not in CHANGEABLE:
        raise InputError(f"--assume {item}: must be KEY=VALUE with one of the keys {', '.join(CHANGEABLE)}")
    try:
        return key, float(value)
    except ValueError:
        raise InputError(f"--assume {item}: {key} must be a number") from None
