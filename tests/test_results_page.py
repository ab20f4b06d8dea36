"""``docs/results.md`` says what the studies found. If these fail, the page tells of other results, or hides some."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.studies.__main__ import HERE, ORDER, PAGE, read_evidence, render
from masksub.app.recipe import load_recipe


@pytest.fixture(scope="module", params=ORDER)
def study(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / f"{request.param}.json").read_text(encoding="utf-8"))
    return found


def test_the_page_is_made_from_the_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "make it anew: python -m benchmarks.studies --render"


def test_the_result_is_that_of_the_recipe(study: dict[str, Any]) -> None:
    """The committed recipe and the committed figures belong together."""
    recipe = load_recipe(HERE / f"{study['study']}.yaml").model_dump(mode="json")
    recorded = study["compare"]["recipe"]
    for section in ("augment", "model", "loss", "optim", "train"):
        told = {**recipe[section], **({"attention": recorded["model"]["attention"]} if section == "model" else {})}
        # Keys that came after the study have their defaults there, and say what it did.
        assert recorded[section] == {key: told[key] for key in recorded[section]}, section
    for key in ("name", "train", "val", "train_images", "val_images", "image_size"):
        assert recorded["data"][key] == recipe["data"][key], key


def test_every_study_has_equal_compute_and_seeds_enough(study: dict[str, Any]) -> None:
    evidence = read_evidence(study["compare"])
    equal, sub = evidence.arm("plain-equal"), evidence.arm("masksub")
    assert equal is not None and sub is not None
    assert len(equal.complete) >= 3 and len(sub.complete) >= 3
    assert equal.flops == pytest.approx(sub.flops, rel=0.02)
    assert all(run.path in PAGE.read_text(encoding="utf-8") for run in sub.runs), "figures can be traced to their runs"
    assert not any(run.path.startswith("/") for arm in evidence.arms for run in arm.runs)
