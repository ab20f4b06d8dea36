"""``docs/models.md`` says what the zoo found. If these fail, the page has a hole, or tells of other results."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torchvision

from benchmarks.zoo_page import PAGE, RESULTS, render
from tests.cases import hf_text, hf_vision


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def test_the_page_is_made_from_the_results(results: dict[str, Any]) -> None:
    assert PAGE.read_text(encoding="utf-8") == render(results), "make it anew: python -m benchmarks.zoo --render"


def test_no_module_and_no_classifier_is_left_out(results: dict[str, Any]) -> None:
    """For the versions of the results; a newer library may have more."""
    rows, versions = set(results["rows"]), results["versions"]
    if timm.__version__ == versions["timm"]:
        assert {f"timm:{m}" for m in timm.list_modules() if timm.list_models(module=m)} <= rows
    if torchvision.__version__ == versions["torchvision"]:
        assert {f"torchvision:{n}" for n in torchvision.models.list_models(module=torchvision.models)} <= rows
    assert {f"hf:{name.removeprefix('hf ')}" for name in (*hf_vision.CASES, *hf_text.CASES)} <= rows
    assert len(rows) > 200


def test_everything_passes_and_is_explained(results: dict[str, Any]) -> None:
    broken = {name: row.get("problem") or row["broken"] for name, row in results["rows"].items()
              if row.get("problem") or row["broken"]}  # fmt: skip
    assert broken == {}
    assert all(row["why"] and row["where"] and row["how"] for row in results["rows"].values())


def test_tokens_are_dropped_in_most_families_of_transformers(results: dict[str, Any]) -> None:
    """A family that falls back to pixels unnoticed costs its users half a step."""
    dropped = {name for name, row in results["rows"].items() if row["how"] == "drop"}
    assert {f"timm:{m}" for m in ("vision_transformer", "deit", "eva", "beit", "cait", "naflexvit", "hiera")} <= dropped
    assert sum(name.startswith("timm:") for name in dropped) >= 16
