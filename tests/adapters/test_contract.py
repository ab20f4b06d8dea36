"""The contract that every adapter keeps. If it fails, masksub changes a user's model or masks it wrongly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cases.case import Case
from tests.contract import CHECKS
from tests.models import CASES


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[Case], None], case: Case) -> None:
    check(case)
