"""If these fail, ``masksub plan`` misleads, or its page tells of other counts than those committed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from benchmarks.planning_page import CLASSES, FIXED, GROWING, PAGE, RESULTS, plan_of, render
from masksub.app.errors import InputError
from masksub.app.plan import DEVICES
from masksub.app.plan.shapes import Shapes, count_shapes
from masksub.app.recipe import load_recipe
from masksub.cli import app
from tests.app.plan_made_up import MICRO, recipe
from tests.core.test_flops import vit_forward


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return count_shapes(recipe(), 10)


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and output; InputError is what the command turns into exit code 2."""
    result = CliRunner().invoke(app, ["plan", "digits/vit_micro", *MICRO, *arguments])
    if isinstance(result.exception, InputError):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--gpus", "0"], "--gpus 0: must be at least 1"),
        (["--gpus", "12"], "must be a multiple"),
        (["--device", "h100"], "did you mean h100-80gb?"),
        (["--utilisation", "1.5"], "--utilisation 1.5: must be above 0 and at most 1"),
        (["--network", "0"], "--network 0: must be above 0"),
        (["--assume", "links=0"], "--assume links=0: must be above 0"),
        (["--assume", "link=1"], "with one of the keys memory, peak"),
        (["--assume", "peak=fast"], "peak must be a number"),
        (["--images", "0"], "--images 0: must be at least 1"),
        (["--measured", "0"], "--measured 0: images a second must be above 0"),
        (["--measured", "9", "--measure"], "--measure does not go with --measured"),
        (["--images", "20", "--gpus", "8"], "more than the 20 of an epoch"),
        (["train.global_batch_size=64", "--gpus", "24"], "16 GPUs work"),
        (["train.global_batch_size=96", "train.batch_size=8", "--gpus", "16"], "train.batch_size=6 works with 16"),
        (["data.name=folder", "data.train=nowhere", "data.val=nowhere"], "'nowhere': the data are not here"),
        (["data.name=folder", "data.train=nowhere", "data.val=nowhere"], "give --images and --classes"),
        (["data.name=folder", "data.train=nowhere", "data.val=nowhere", "--images", "9"], "give --classes"),
        (["optim.name=adamwx"], "optim.name = 'adamwx'"),
    ],
)
def test_wrong_input_is_told(arguments: list[str], told: str) -> None:
    code, message = command(*arguments)
    assert code == 2 and told in message, message


def test_json_has_the_figures_of_the_text() -> None:
    code, text = command("--gpus", "16", "--measured", "123")
    assert code == 0
    code, printed = command("--gpus", "16", "--measured", "123", "--json")
    found = json.loads(printed)
    assert code == 0 and found["nodes"] == 2
    for arm in ("plain", "masksub"):
        update = found["updates"][arm]
        assert f"{update['seconds']:.4g}" in text and f"{update['images_per_second']:,.0f}" in text
        assert f"{found['totals'][arm]['gpu_hours']:,.0f}" in text
    assert f"{found['memory']['masksub']['total'] / 2**30:.2f}" in text
    assert len(found["table"]) == sum(line.lstrip()[:1].isdigit() for line in text.splitlines() if " x " in line)
    for key in ("utilisation", "network", "links", "reserve", "disk"):
        assert f"{key}" in text and key in found["assumptions"]


def test_help_fits_a_screen_and_names_every_device() -> None:
    result = CliRunner().invoke(app, ["plan", "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0 and len(result.output.splitlines()) <= 40
    assert all(name in result.output for name in DEVICES) and result.output.count("Example:") == 1


def test_the_page_is_made_from_the_results() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == render(results), "python -m benchmarks.planning_page --render"
    assert "<" not in PAGE.read_text(encoding="utf-8"), "a place that was not filled"


def test_the_pages_counts_are_those_of_the_recipe() -> None:
    """Weights, operations and optimizer of ViT-H by hand: 32 layers x 1,280, 256 patches of 14 px, 21,841 classes."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    width, depth, tokens, classes = 1280, 32, 257, CLASSES
    block = 12 * width * width + 13 * width + 2 * width  # with layer scale
    count = 3 * 14 * 14 * width + width + width + 256 * width + depth * block + 2 * width + classes * width + classes
    found = results["shapes"]
    assert found["parameters"] == count
    assert found["optimizer"] == pytest.approx(8 * count, rel=1e-6)
    embed = 2 * 256 * 3 * 14 * 14 * width
    assert found["plain"] == 3 * vit_forward(tokens, 256, width, depth, 14, classes) - embed
    assert load_recipe(results["recipe"], GROWING).optim.name == "lamb"
    fixed = plan_of(results, FIXED)
    assert fixed.recipe.train.global_batch_size == 2048 and fixed.updates["masksub"].images == 2048
