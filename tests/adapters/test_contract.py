"""The contract that every adapter keeps. If it fails, masksub changes a user's model or masks it wrongly."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.cases.case import Case
from tests.contract import (
    CHECKS,
    a_changing_ratio_beside_drop_path_and_then_all_is_freed,
    other_branches_leave_the_model_as_it_was,
)
from tests.models import CASES

COSTLY = {a_changing_ratio_beside_drop_path_and_then_all_is_freed, other_branches_leave_the_model_as_it_was}
"""They take as long as all others together, and hardly depend on where positions are: one case a family is quick."""


def also_slow(check: Callable[[Case], None], name: str) -> bool:
    """Whether it is a costly check of a further case of a family, "hf beit, shared bias" after "hf beit"."""
    family = re.split(r",| with(?:out)? ", name)[0]
    first = next(each for each in CASES if re.split(r",| with(?:out)? ", each)[0] == family)
    return check in COSTLY and name != first


@pytest.mark.parametrize(
    ("check", "name"),
    [
        pytest.param(
            check,
            name,
            id=f"{check.__name__}-{name}",
            marks=[pytest.mark.slow] if also_slow(check, name) else [],
        )
        for check in CHECKS
        for name in CASES
    ],
)
def test_contract(check: Callable[[Case], None], name: str) -> None:
    check(CASES[name])
