"""PathSub: drop path in the sub branch; CoSub, in which both branches drop paths."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from .batch_norm import BatchNorm
from .branches import Branch, RateBranch
from .call import Call, calls_replaced
from .intercept import Interceptor
from .paths import Paths, find_paths
from .ranks import rank_generator
from .residual import exits_of
from .wrappers import unwrap

__all__ = ["CoSub", "PathSub"]


class PathSub(RateBranch):
    """Drop residual branches at random in the sub branch (PathSub, arXiv 2306.11339).

    Every residual branch of the model is dropped for a share ``p`` of the inputs, each branch for others, also in
    models that were built without drop path. Within the branch ``p`` stands in place of the recipe's own rates.

    Args:
        p: share of the inputs for which a residual branch is dropped, 0 <= p < 1. May be changed between steps.
        efficient: run a residual branch only on the inputs that keep it, as many in each: ``keep_count(B, p)``, scaled
            by B / K, so that the expectation is that of the whole batch. A step then costs about 1 + (1 - p) x a plain
            one. A batch in which no input would be dropped is run whole, and so are residual branches where running a
            part is not possible (something in them needs the whole batch). False: run all whole and drop each input on
            its own with probability p, scaled by 1 / (1 - p): exact drop path, 2 x.
        bn: batch-norm statistics, see ``Branch``; in an efficient branch layers see the kept inputs only.

    Raises:
        ValueError: p out of range; when applied: the model has no residual branch that is known.
    """

    def __init__(self, p: float = 0.1, *, efficient: bool = True, bn: BatchNorm = "shared") -> None:
        super().__init__(p, bn)
        self.efficient = efficient

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p}, efficient={self.efficient}, bn={self.bn!r})"

    @contextmanager
    def _changed(
        self, model: nn.Module, keep: Tensor | None, generator: torch.Generator | None, beside: Sequence[Branch]
    ) -> Iterator[None]:
        if keep is not None and not beside:
            raise ValueError(f"keep was given, but {self!r} masks nothing")
        inner = unwrap(model)
        if not exits_of(inner):
            raise ValueError(
                f"{self!r} changes nothing: {type(inner).__name__} has no residual branch that masksub knows "
                f"(looked for drop_path, stochastic_depth and the classes in masksub.adapters.residuals)"
            )
        interceptor = _interceptor(self.efficient, tuple(type(branch) for branch in beside))
        with ExitStack() as stack:
            paths: Paths | None = None

            def draw(call: Call) -> Call:
                nonlocal paths
                if paths is None:
                    paths = stack.enter_context(interceptor.applied(inner, call, beside))
                paths.draw(call.x, self.p, generator or rank_generator(call.x.device))
                return call

            with calls_replaced(model, draw):
                yield
            if paths is not None and not paths.reached:
                raise RuntimeError(
                    f"{type(inner).__name__} ran without coming by a residual branch; nothing was dropped"
                )


class CoSub(PathSub):
    """Both branches drop paths, and each learns from the other (Touvron et al., "Co-training 2L Submodels for Visual
    Recognition", CVPR 2023, arXiv 2212.04884); a comparator.

    For ``TwoBranchStep``, which then computes, with s the relaxed target and w the weight,

        L = (1 - w) * (crit(z1, y) + crit(z2, y)) / 2 + w * (soft(z1, s(z2)) + soft(z2, s(z1))) / 2

    with targets that carry no gradient. Both forwards are held until the backward, whatever the step's mode. Arguments
    as for ``PathSub``.
    """

    mutual = True

    def __init__(self, p: float = 0.1, *, efficient: bool = True, bn: BatchNorm = "shared") -> None:
        if bn == "main":
            raise ValueError(
                "bn = 'main': CoSub has no main branch; both update the statistics of batch norm ('shared')"
            )
        super().__init__(p, efficient=efficient, bn=bn)


@functools.cache
def _interceptor(efficient: bool, beside: tuple[type[Branch], ...]) -> Interceptor[Paths]:
    """One for all PathSubs alike, so that a new object for each step doesn't find the paths again."""

    def find(model: nn.Module, call: Call, others: Sequence[Branch]) -> Paths:
        paths = find_paths(model, call, others, efficient)
        if not paths.residuals:
            raise ValueError(
                f"PathSub changes nothing: {type(model).__name__} has places for drop path, but runs none of them"
            )
        return paths

    return Interceptor(find, lambda _, paths: paths.interceptions(), exits_of)
