"""What PathSub drops of a model: its residual branches, which are found and tried on shapes alone.

Shape letters: B batch, K inputs that a residual branch is run on, R residual branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .branches import Branch
from .call import Call
from .intercept import Interception, Interceptor, after
from .masking import keep_count
from .residual import Residual, bare_copy, is_drop_path, trial_call, watch

__all__ = ["Paths", "find_paths"]


class _Uses:
    """Which residual branch a call of a shared submodule belongs to: they come round in the same order."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.calls = 0

    def next(self) -> int:
        number = self.numbers[self.calls % len(self.numbers)]
        self.calls += 1
        return number


class _Exit(nn.Module):
    """Stands where a block has its drop path. No parameters, no buffers."""

    def __init__(self, drop: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)


class Paths:
    """The residual branches of one model, and what the current batch drops of them.

    Attributes:
        residuals: in the order in which they end.
        rows: (R, K), the inputs that keep each branch, ascending; None where none is dropped.
        scales: (R, B), 0 or 1 / (1 - p), for branches that are run whole; None where none is dropped.
        factor: B / K.
        reached: whether the forward came by a residual branch.
    """

    def __init__(self, residuals: list[Residual]) -> None:
        self.residuals = residuals
        self.batch = 0
        self.factor = 1.0
        self.rows: Tensor | None = None
        self.scales: Tensor | None = None
        self.reached = False
        self._uses: list[_Uses] = []

    def draw(self, x: Tensor, p: float, generator: torch.Generator | None) -> None:
        """Choose anew, before a forward and outside whatever is compiled.

        Raises:
            ValueError: the batch is too small.
        """
        self.batch = batch = x.shape[0]
        self.reached = False
        for uses in self._uses:
            uses.calls = 0
        kept = keep_count(batch, p)
        self.factor = batch / kept
        self.rows = self.scales = None
        if p == 0:
            return
        if kept == batch and any(r.entry is not None for r in self.residuals):
            raise ValueError(
                f"p = {p} drops nothing in a batch of {batch}: {kept} of {batch} inputs are kept; use a larger batch "
                f"or rate, or PathSub(efficient=False)"
            )
        device = generator.device if generator is not None else x.device
        noise = torch.rand(len(self.residuals), batch, generator=generator, device=device).to(x.device)
        self.rows = noise.argsort(dim=1)[:, :kept].sort(dim=1).values
        self.scales = (noise >= p) / (1 - p)

    def interceptions(self) -> list[Interception]:
        """What stands in at the exits, and at the entries and in between."""
        exits: dict[tuple[str, str], list[int]] = {}
        selects: dict[tuple[str, str], list[int]] = {}
        for number, residual in enumerate(self.residuals):
            exits.setdefault((residual.block, residual.exit), []).append(number)
            if residual.entry is not None:
                # Further tensors of what comes before the entry are those of the whole batch, rightly.
                later = residual.called[residual.called.index(residual.entry) :]
                for name in dict.fromkeys((residual.entry, *(n for n in residual.inside if n in later))):
                    selects.setdefault((residual.block, name), []).append(number)
        parts = [self._exit(block, name, self._shared(numbers)) for (block, name), numbers in exits.items()]
        return parts + [self._entry(block, name, self._shared(numbers)) for (block, name), numbers in selects.items()]

    def _shared(self, numbers: list[int]) -> _Uses:
        self._uses.append(_Uses(numbers))
        return self._uses[-1]

    def _exit(self, block: str, name: str, uses: _Uses) -> Interception:
        def drop(x: Tensor) -> Tensor:
            self.reached = True
            number = uses.next()
            if self.rows is None or self.scales is None:
                return x
            if self.residuals[number].entry is None:
                times = x.shape[0] // self.batch  # windows or patches as rows: those of an input go together
                scale = self.scales[number].repeat_interleave(times).to(x.dtype)
                return x * scale.view(-1, *[1] * (x.ndim - 1))
            times = x.shape[0] // self.rows.shape[1]
            whole = x.new_zeros(self.batch * times, *x.shape[1:])
            return whole.index_copy(0, _rows(self.rows[number], times), x * self.factor)

        if is_drop_path(name):  # the recipe's own rate does not hold in the branch
            return Interception(block, name, lambda _: _Exit(drop))

        def drop_first(result: Any) -> Any:  # attention gives its weights too
            return (drop(result[0]), *result[1:]) if isinstance(result, tuple) else drop(result)

        return after(_join(block, name), drop_first)

    def _entry(self, block: str, name: str, uses: _Uses) -> Interception:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def selecting(*args: Any, **kwargs: Any) -> Any:
                residual = self.residuals[number := uses.next()]
                if self.rows is None:
                    return original(*args, **kwargs)
                rows, known = self.rows[number], residual.inside.get(name, {})
                first = name == residual.entry

                def select(key: int | str, value: Any) -> Any:
                    nonlocal first
                    if not isinstance(value, Tensor):
                        return value
                    dimensions, each_input = known.get(key, (value.ndim, first))
                    first = False
                    # A table that got a dimension more since it was watched has one row for each input by now: it
                    # follows the masking.
                    if each_input or value.ndim != dimensions:
                        return value.index_select(0, _rows(rows, value.shape[0] // self.batch))
                    return value

                return original(
                    *(select(key, value) for key, value in enumerate(args)),
                    **{key: select(key, value) for key, value in kwargs.items()},
                )

            return selecting

        return Interception(_join(block, name), "forward", make)


def _join(*path: str) -> str:
    return ".".join(part for part in path if part)


def _rows(rows: Tensor, times: int) -> Tensor:
    """Rows of the inputs (K,) where each input has ``times`` rows: (K * times,)."""
    if times == 1:
        return rows
    return (rows.unsqueeze(1) * times + torch.arange(times, device=rows.device)).flatten()


_TRIES = 3
"""Submodules of a branch that are tried as its entry."""


def find_paths(model: nn.Module, call: Call, beside: Sequence[Branch], efficient: bool) -> Paths:
    """The residual branches of a model, found and tried on a copy: on shapes alone, or where the model needs values, on
    those of the call.

    Args:
        model: the unwrapped model; it is left alone.
        call: one of its calls.
        beside: branches that are in force at the same time.
        efficient: find out which residual branches can be run on a part of the batch.
    """
    for meta in (True, False):
        bare, trial = bare_copy(model, meta=meta), trial_call(call, meta=meta)
        device = trial.x.device
        with torch.random.fork_rng([] if device.type in ("cpu", "meta") else [device]):
            try:
                residuals = watch(bare, trial)
            except (RuntimeError, NotImplementedError):
                if meta:
                    continue
                raise
            _find_entries(bare, trial, beside, residuals if efficient else [], residuals)
            break
    return Paths(residuals)


def _find_entries(
    model: nn.Module, call: Call, beside: Sequence[Branch], wanted: list[Residual], residuals: list[Residual]
) -> None:
    # Nearly always the first submodule of each branch is its entry. One trial shows it; else they are tried by kind.
    for r in wanted:
        r.entry = r.called[0] if r.called else None
    if not wanted or _runs_on_a_part(model, call, beside, residuals):
        return
    for r in wanted:
        r.entry = None
    alike: dict[tuple[str, str, int, tuple[str, ...]], list[Residual]] = {}
    for r in wanted:
        kind = type(model.get_submodule(r.block)).__qualname__
        alike.setdefault((kind, r.exit, r.place, r.called), []).append(r)
    for (*_, called), same in alike.items():
        # The earlier the entry the more is saved. From a later one the result is the same.
        for entry in (*called[:_TRIES], None):
            for r in same:
                r.entry = entry
            if entry is None or _runs_on_a_part(model, call, beside, residuals):
                break


def _runs_on_a_part(model: nn.Module, call: Call, beside: Sequence[Branch], residuals: list[Residual]) -> bool:
    """Whether a forward goes through with these residual branches run on a part of the batch."""
    paths = Paths(residuals)
    interceptor = Interceptor(lambda _: paths, lambda _, paths: paths.interceptions())
    try:
        with ExitStack() as stack, torch.no_grad():
            for branch in beside:
                stack.enter_context(branch.applied(model))
            stack.enter_context(interceptor.applied(model))
            paths.draw(call.x, 0.5, None)
            model(*call.args, **call.kwargs)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError):
        return False
    return True
