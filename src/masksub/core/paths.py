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
from .intercept import Interception, Interceptor
from .masking import keep_count
from .residual import Residual, bare_copy, is_drop_path, trial_call, watch

__all__ = ["Paths", "find_paths"]


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


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
        """Choose anew, before a forward and outside whatever is compiled."""
        self.batch = batch = x.shape[0]
        self.reached = False
        for uses in self._uses:
            uses.calls = 0
        self.rows = self.scales = None
        if p == 0:
            return
        device = generator.device if generator is not None else x.device
        noise = torch.rand(len(self.residuals), batch, generator=generator, device=device).to(x.device)
        self.scales = (noise >= p) / (1 - p)
        kept = keep_count(batch, p)
        if kept < batch:  # else no input would be dropped: all branches are run whole
            self.factor = batch / kept
            self.rows = noise.argsort(dim=1)[:, :kept].sort(dim=1).values

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
        parts = []
        for at, numbers in exits.items():
            entry = self._selecting(at[1], self._shared(selects.pop(at))) if at in selects else None
            parts.append(self._exit(*at, self._shared(numbers), entry))
        for (block, name), numbers in selects.items():
            make = self._selecting(name, self._shared(numbers))
            parts.append(Interception(_join(block, name), "forward", make))
        return parts

    def _shared(self, numbers: list[int]) -> _Uses:
        self._uses.append(_Uses(numbers))
        return self._uses[-1]

    def _times(self, x: Tensor, inputs: int) -> int:
        """Rows of each input: more than one where windows or patches are rows, which then go together."""
        times, rest = divmod(x.shape[0], inputs)
        if rest:
            raise RuntimeError(
                f"a residual branch has {x.shape[0]} rows for {inputs} inputs: it is dropped by input, which must come "
                f"first"
            )
        return times

    def _exit(self, block: str, name: str, uses: _Uses, entry: Wrap | None) -> Interception:
        def drop(x: Tensor) -> Tensor:
            self.reached = True
            number = uses.next()
            if self.scales is None:
                return x
            if self.rows is None or self.residuals[number].entry is None:
                scale = self.scales[number].repeat_interleave(self._times(x, self.batch)).to(x.dtype)
                return x * scale.view(-1, *[1] * (x.ndim - 1))
            times = self._times(x, self.rows.shape[1])
            whole = x.new_zeros(self.batch * times, *x.shape[1:])
            return whole.index_copy(0, _rows(self.rows[number], times), x * self.factor)

        if is_drop_path(name):  # the recipe's own rate does not hold in the branch
            return Interception(block, name, lambda _: _Exit(drop))

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            run = original if entry is None else entry(original)

            def run_and_drop(*args: Any, **kwargs: Any) -> Any:
                result = run(*args, **kwargs)  # attention gives its weights too
                return (drop(result[0]), *result[1:]) if isinstance(result, tuple) else drop(result)

            return run_and_drop

        return Interception(_join(block, name), "forward", make)

    def _selecting(self, name: str, uses: _Uses) -> Wrap:
        """A submodule that gets the inputs that keep its residual branch."""

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def selecting(*args: Any, **kwargs: Any) -> Any:
                residual = self.residuals[number := uses.next()]
                if self.rows is None:
                    return original(*args, **kwargs)
                rows, known = self.rows[number], residual.inside.get(name, {})
                first = name == residual.entry

                def select(key: Any, value: Any) -> Any:
                    nonlocal first
                    if isinstance(value, tuple):
                        return tuple(select((key, i), each) for i, each in enumerate(value))
                    if not isinstance(value, Tensor):
                        return value
                    dimensions, each_input = known.get(key, (value.ndim, first))
                    first = False
                    # A table that got a dimension more since it was watched has one row for each input by now: it
                    # follows the masking.
                    if each_input or value.ndim != dimensions:
                        return value.index_select(0, _rows(rows, self._times(value, self.batch)))
                    return value

                # In this order: the first tensor may be among either.
                args = tuple(select(key, value) for key, value in enumerate(args))
                kwargs = {key: select(key, value) for key, value in kwargs.items()}
                return original(*args, **kwargs)

            return selecting

        return make


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
    """Whether a forward goes through with these residual branches run on a part of the batch.

    What is masked beside it may change from nothing to a part and back: both are tried.
    """
    paths = Paths(residuals)
    interceptor = Interceptor(lambda _: paths, lambda _, paths: paths.interceptions())
    trials = [[branch.at_ratio(ratio) for branch in beside] for ratio in (0.0, 0.5)] if beside else [[]]
    try:
        for branches in trials:
            with ExitStack() as stack, torch.no_grad():
                for branch in branches:
                    stack.enter_context(branch.applied(model))
                stack.enter_context(interceptor.applied(model))
                paths.draw(call.x, 0.5, None)
                model(*call.args, **call.kwargs)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError):
        return False
    return True
