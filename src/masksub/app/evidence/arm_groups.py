"""Which group of runs is which arm of a comparison, and which are a sweep's settings: from facts, not from names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from masksub.app.experiment.arms import ARMS
from masksub.app.recipe_yaml import shown
from masksub.core.methods import METHODS

from .recipe_groups import Group, decisive_settings, varying_keys

__all__ = ["Places", "place_groups"]

EQUAL = 0.05
"""Plain training is at equal compute if its FLOPs are off by no more than this share."""
PREDICTED = 0.2
"""The same where the FLOPs are predicted from the first part of a run."""
MOST = 2.1
"""A step of two branches takes no more plain steps than this; used where no FLOPs are known yet."""
FEW_KEYS = 4
"""Groups that differ in more keys than this, and than there are groups to tell apart, are no sweep."""


@dataclass(frozen=True)
class Places:
    """Groups in their places.

    Attributes:
        arms: key -> group, as in ``evidence.Arm``.
        sweep: the groups that are the settings of a sweep; empty without one.
        keys: what varies among them.
        chosen: index of the setting that stands for the method among the arms; None without a sweep.
    """

    arms: dict[str, Group]
    sweep: tuple[Group, ...] = ()
    keys: tuple[str, ...] = ()
    chosen: int | None = None


def place_groups(
    groups: Sequence[Group], recommend: Callable[[Sequence[Group], tuple[str, ...]], int | None]
) -> Places:
    """Put groups in their places.

    Args:
        groups: all of them.
        recommend: index of the setting of a sweep to use, None if none is complete; asked where no setting, or more
            than one, was trained beside the plain runs.
    """
    methods: dict[str, list[Group]] = {}
    for group in groups:
        methods.setdefault(group.method, []).append(group)
    plains = methods.pop("plain", [])
    beside = frozenset(parent for group in plains for parent in group.parents)
    swept = _swept_method(methods)
    sweep = tuple(methods.get(swept, ())) if swept else ()
    keys = varying_keys(group.recipe for group in sweep)
    chosen = _stand_in(sweep, beside, recommend(sweep, keys)) if sweep else None
    firsts: dict[str, Group] = {}
    others: list[tuple[str, Group]] = []
    for method, members in methods.items():
        base = chosen if method == swept else _stand_in(members, beside, None)
        assert base is not None
        firsts[method] = members[base]
        if method != swept:
            others += [(method, group) for number, group in enumerate(members) if number != base]
    if plains:
        two_branches = [m for m in (*ARMS, *firsts) if m in firsts and METHODS[m].weight not in (0, 1)]
        like = next((firsts[method] for method in two_branches), None)
        plain = _plain(plains, like)
        firsts["plain"] = plain
        equal = _equal_compute(plain, plains, like) if like else None
        if equal is not None:
            firsts["plain-equal"] = equal
        others += [("plain", group) for group in plains if group is not plain and group is not equal]
    order = list(ARMS)
    arms = dict(sorted(firsts.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
    for method, group in others:
        arms[_other_key(method, group, firsts[method], arms)] = group
    return Places(arms, sweep, keys, chosen)


def _swept_method(methods: dict[str, list[Group]]) -> str | None:
    """The method whose settings are a sweep: MaskSub, else the one with most settings."""
    for method, members in sorted(methods.items(), key=lambda item: (item[0] != "masksub", -len(item[1]))):
        keys = varying_keys(group.recipe for group in members)
        if len(members) > 1 and len(keys) <= max(FEW_KEYS, len(members) - 1):
            return method
    return None


def _stand_in(members: Sequence[Group], beside: frozenset[object], recommended: int | None) -> int:
    """Index of the group that stands for its method: one from a folder that holds plain runs, the recommended one, the
    one with most complete runs, the first."""
    return max(
        range(len(members)),
        key=lambda i: (bool(members[i].parents & beside), i == recommended, len(members[i].complete), -i),
    )


def _plain(plains: Sequence[Group], like: Group | None) -> Group:
    """The plain group that differs least from the arm it is compared with; of equals the shortest."""

    def differing(group: Group) -> int:
        if like is None:
            return 0
        return len(varying_keys([group.recipe, like.recipe.model_copy(update={"method": "plain"})]))

    return min(plains, key=lambda group: (differing(group), group.recipe.train.epochs))


def _equal_compute(plain: Group, plains: Sequence[Group], like: Group) -> Group | None:
    """The longer plain group whose compute is that of ``like``."""
    fits: list[tuple[float, Group]] = []
    for group in plains:
        if group is plain or group.recipe.train.epochs <= plain.recipe.train.epochs:
            continue
        if group.flops and like.flops:
            apart = abs(group.flops / like.flops - 1)
            if apart <= (EQUAL if group.complete and like.complete else PREDICTED):
                fits.append((apart, group))
        elif varying_keys([plain.recipe, group.recipe]) == ("train.epochs",):
            stretch = group.recipe.train.epochs / like.recipe.train.epochs
            if 1 < stretch <= MOST:
                fits.append((stretch, group))
    return min(fits, key=lambda each: each[0])[1] if fits else None


def _other_key(method: str, group: Group, first: Group, taken: dict[str, Group]) -> str:
    """A key that says what the group differs in."""
    settings = decisive_settings(group.recipe)
    differing = varying_keys([first.recipe, group.recipe])
    key = " ".join([method, *(f"{name}={shown(settings.get(name))}" for name in differing)])
    number = 2
    while key in taken:  # values that are too long to be shown whole
        key, number = f"{key} ({number})", number + 1
    return key
