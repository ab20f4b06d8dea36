"""All cases, found by walking ``tests/cases``, and the small models that other tests use."""

from __future__ import annotations

import importlib
import pkgutil

from tests import cases
from tests.cases.case import Case
from tests.cases.pixels import resnet
from tests.cases.timm_vit import vit

__all__ = ["CASES", "Case", "resnet", "vit"]


def _all_cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for module in pkgutil.iter_modules(cases.__path__):
        for name, case in getattr(importlib.import_module(f"tests.cases.{module.name}"), "CASES", {}).items():
            assert name not in found, f"two cases are named {name!r}"
            found[name] = case
    return found


CASES = _all_cases()
