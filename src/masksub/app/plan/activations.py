"""What a training step holds for its backward, counted from shapes.

The step's forward runs on tensors that have a shape, a device and no values (``FakeTensorMode``), so that autocast and
the fused kernels of a GPU are those of the GPU, without one. Each storage that an operation makes is followed until it
is freed; what is alive when backward would begin is what the step holds.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from masksub.core.residual import exits_of

__all__ = ["Held", "Step", "blocks_of", "held_by"]

Step = Any
"""Called with (model, x, backward): runs a two-branch step and calls ``backward`` in place of each backward."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Held:
    """What is alive at each call of backward, in bytes.

    Attributes:
        kept: activations, one entry a backward: two in split mode (main branch, sub branch), one in joint mode.
        copies: most bytes of weights cast to the precision of the forward.
        block: most that one block keeps; None without blocks.
        widest: the largest single tensor.
    """

    kept: tuple[int, ...]
    copies: int
    block: int | None
    widest: int


def held_by(
    model: nn.Module,
    step: Step,
    x: Sequence[int],
    *,
    precision: str = "fp32",
    device: Literal["cuda", "cpu"] = "cuda",
) -> Held:
    """Follow the storages of a step's forward.

    Args:
        model: on any device; a copy without values is what runs.
        step: see ``Step``.
        x: shape of the input.
        precision: "fp32", or "bf16" or "fp16" for autocast as the trainer uses it.
        device: whose kernels and whose autocast.
    """
    with FakeTensorMode():
        trial = _without_values(model, device).train()
        own = [*trial.parameters(), *trial.buffers()]
        _autocast(trial, device, precision)
        # What a branch finds out about a model at its first step, on copies of it, is no part of a usual step.
        step(trial, torch.empty(*x, device=device), lambda loss: None)
        records: list[tuple[int, int]] = []
        blocks: list[int] = []
        alive = _Alive(own)
        for block in blocks_of(trial):
            _measure_block(block, alive, blocks)
        with _GpuAttention() if device == "cuda" else contextlib.nullcontext(), alive:
            images = torch.empty(*x, device=device)
            step(trial, images, lambda loss: records.append((alive.now, alive.copies)))
    return Held(
        kept=tuple(now - copies for now, copies in records),
        copies=max((copies for _, copies in records), default=0),
        block=max(blocks, default=None),
        widest=alive.widest,
    )


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model: what FSDP2 gathers at once, and what recompute runs again."""
    return [model.get_submodule(path) for path in exits_of(model) if path]


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that are alive, apart from the model's own."""

    def __init__(self, own: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self._sizes: dict[int, int] = {}
        self._copies: set[int] = set()
        self.now = self.copies = self.widest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        is_copy = func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._own
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage(), is_copy)
        return out

    def _see(self, storage: torch.UntypedStorage, is_copy: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._own or key in self._sizes:
            return
        self._sizes[key] = size
        self.now += size
        self.widest = max(self.widest, size)
        if is_copy:
            self._copies.add(key)
            self.copies += size
        weakref.finalize(storage, self._gone, key).atexit = False

    def _gone(self, key: int) -> None:
        size = self._sizes.pop(key)
        self.now -= size
        if key in self._copies:
            self._copies.remove(key)
            self.copies -= size


class _GpuAttention(TorchFunctionMode):
    """On tensors without values the dispatcher can't ask the GPU which kernel it has, and takes attention apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _fused(*args, **(kwargs or {}))


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    """The kernel that keeps least and takes this input: flash without a mask, else memory-efficient attention."""
    if torch.is_autocast_enabled("cuda"):  # below this point autocast does not see the call
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        attn_mask = None if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.to(dtype)
    aten: Any = torch.ops.aten
    if attn_mask is None and query.dtype != torch.float32:
        flash = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False)
        return cast("Tensor", flash[0])
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    efficient = aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True, dropout_p, is_causal)
    return cast("Tensor", efficient[0])


def _without_values(model: nn.Module, device: str) -> nn.Module:
    """A copy on ``device`` in the FakeTensorMode that is in force; weights are not copied."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if parameter else empty
    return copy.deepcopy(model, memo)


def _measure_block(block: nn.Module, alive: _Alive, found: list[int]) -> None:
    before: list[int] = []
    block.register_forward_pre_hook(lambda *_: before.append(alive.now - alive.copies))
    block.register_forward_hook(lambda *_: found.append(alive.now - alive.copies - before.pop()))


def _autocast(model: nn.Module, device: str, precision: str) -> None:
    """Autocast around the model's forward and logits in fp32, as Accelerate does it."""
    if precision not in _DTYPES:
        return
    entered: list[Any] = []

    def begin(*_: Any) -> None:
        scope = _autocast_scope(device, _DTYPES[precision])
        scope.__enter__()
        entered.append(scope)

    def end(_: nn.Module, __: Any, output: Any) -> Any:
        entered.pop().__exit__(None, None, None)
        return output.float() if isinstance(output, Tensor) else output

    model.register_forward_pre_hook(begin)
    model.register_forward_hook(end, always_call=True)


@contextlib.contextmanager
def _autocast_scope(device: str, dtype: torch.dtype) -> Iterator[None]:
    """``torch.autocast``, which turns itself off where there is no such device."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])
