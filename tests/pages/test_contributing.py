"""CONTRIBUTING's worked examples hold. If these fail, whoever follows the page step by step ends with failing tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract import CHECKS
from tests.pages.blocks import ROOT, find_blocks
from tests.pages.runner import apply_diff

PAGE = ROOT / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources and tests in which the page's files were written and its diff was applied."""
    folder = tmp_path_factory.mktemp("contributing")
    (folder / "benchmarks" / "results").mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "results" / "zoo.json", folder / "benchmarks" / "results")
    for name in ("src", "tests", "docs_build"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "library").mkdir()
    shutil.copy(ROOT / "tests" / "pages" / "acme.py", folder / "library")
    for block in find_blocks(PAGE.read_text(encoding="utf-8")):
        assert block.title is not None, f"CONTRIBUTING.md:{block.line}: this test takes blocks with a title"
        path = folder / block.title
        if block.language == "diff":
            path.write_text(apply_diff(block.code, path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            assert not path.exists(), f"{block.title} is a real file; the example would replace it"
            path.write_text(block.code, encoding="utf-8")
    return folder


def run(folder: Path, *command: str) -> str:
    """Run Python on the copy, with the copy's masksub and the imaginary library; what it prints."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST")},
        "PYTHONPATH": os.pathsep.join(map(str, (folder / "src", folder, folder / "library"))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_the_family_keeps_the_contract_and_the_integration_its_gradients(copy: Path) -> None:
    """The row is found, the case is found, and the tests that the page names pass."""
    tests = ("tests/adapters/test_contract.py", "tests/integrations/test_acme.py")
    told = run(copy, "-m", "pytest", *tests, "-k", "acme", "-p", "no:cacheprovider")
    assert re.search(rf"^=* ?{len(CHECKS) + 3} passed", told, re.MULTILINE), told  # and the three of test_acme.py
    told = run(copy, "-c", "from docs_build.families import table; print(table())")
    assert re.search(r"^\| acme .*of another library", told, re.MULTILINE), told


def test_the_recipe_is_found_valid_and_trains_two_steps(copy: Path) -> None:
    program = """
import json, sys
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe, packaged_recipes
from masksub.app.train import train

recipe = load_recipe("digits/vit_micro_bce", sys.argv[1:])
print(json.dumps(train(recipe, "run", reporter=Reporter(quiet=True))["updates"]))
"""
    few = ("data.train_images=32", "train.batch_size=16", "train.epochs=1", "data.val_images=20", "train.device=cpu")
    assert run(copy, "-c", program, *few, "optim.warmup_epochs=0").split()[-1] == "2"
    header = (copy / "src/masksub/recipes/digits/vit_micro_bce.yaml").read_text(encoding="utf-8").partition("\n\n")[0]
    assert all(f"# {word}:" in header for word in ("Run", "Hardware", "Paper", "Measured", "We differ"))


def test_the_files_are_in_the_style_that_the_linter_asks_for(copy: Path) -> None:
    titles = [block.title or "" for block in find_blocks(PAGE.read_text(encoding="utf-8"))]
    files = [title for title in titles if title.endswith(".py")]
    run(copy, "-m", "ruff", "check", "--no-cache", *files)
    run(copy, "-m", "ruff", "format", "--check", "--no-cache", *files)
