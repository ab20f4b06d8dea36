"""What may change when a run goes on. If these fail, a resumed run is another training than its folder says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from masksub.app.errors import InputError
from masksub.app.progress import Reporter
from masksub.app.recipe import dump_recipe, load_recipe
from masksub.app.resume import APPROXIMATE, FREE, continuation
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from masksub.app.train import train

SMALL = (
    "data.train_images=64", "data.val_images=20", "train.epochs=1", "train.batch_size=16", "train.log_every=2",
    "model.kwargs.embed_dim=24", "model.kwargs.depth=1", "model.kwargs.num_heads=2", "optim.warmup_epochs=0",
    "train.tensorboard=false", "train.device=cpu",
)  # fmt: skip


def recipe(*overrides: str) -> Recipe:
    return load_recipe("digits/vit_micro", (*SMALL, *overrides))


def begun(path: Path, processes: int = 1, *overrides: str) -> RunFolder:
    """A run as it is found after a process ended."""
    run = RunFolder(path)
    run.create(recipe(*overrides), ["0", "1"], ["masksub", "train"], processes)
    return run


def test_every_key_that_may_change_is_a_key() -> None:
    """A misspelt one would never be allowed."""
    for key in FREE | APPROXIMATE:
        section, name = key.split(".")
        assert name in type(getattr(recipe(), section)).model_fields, key


def test_what_does_not_change_the_result_may_change_and_is_written_down(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    found = continuation(recipe("data.workers=7", "train.on_nan=skip"), run, processes=1, approximate=False)
    assert found.exact and found.recipe.data.workers == 7
    assert found.changed == ["data.workers: 2 -> 7", "train.on_nan: 'stop' -> 'skip'"]
    train(recipe("train.on_nan=skip"), tmp_path / "run", resume=True, reporter=Reporter(quiet=True))
    (entry,) = run.environment()["resumed"]
    assert entry["changed"] == ["train.on_nan: 'stop' -> 'skip'"] and entry["exact"] and entry["update"] == 0
    assert run.recipe().train.on_nan == "skip"
    # The next one goes on with what is in force, without being told again.
    assert continuation(run.recipe(), run, processes=1, approximate=False).changed == []


def test_what_decides_the_training_may_not_change_whatever_is_said(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    with pytest.raises(InputError, match=r"optim.lr: 0.\d+ -> 0.5") as told:
        continuation(recipe("optim.lr=0.5", "train.precision=bf16"), run, processes=1, approximate=True)
    assert "train.precision: 'fp32' -> 'bf16'" in str(told.value)
    assert "in another folder (--out FOLDER, without --resume), or take the changes back" in str(told.value)


def test_what_changes_numbers_alone_may_change_where_that_is_accepted(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    wanted = recipe("train.precision=bf16")
    with pytest.raises(InputError, match=r"train.precision: 'fp32' -> 'bf16'\nWith --approximate"):
        continuation(wanted, run, processes=1, approximate=False)
    found = continuation(wanted, run, processes=1, approximate=True)
    assert not found.exact and found.recipe.train.precision == "bf16"


def test_another_number_of_processes_keeps_the_images_of_an_update(tmp_path: Path) -> None:
    """With twice the images an update, learning rate, epochs and schedules of the run would no longer fit."""
    run = begun(tmp_path / "run", 4)
    with pytest.raises(InputError, match=r"trained by 4 process.* go on with --resume --approximate. No longer exact"):
        continuation(recipe(), run, processes=2, approximate=False)
    found = continuation(recipe(), run, processes=2, approximate=True)
    assert not found.exact and found.recipe.train.global_batch_size == 64
    assert found.recipe.train.parts(2) == 2
    with pytest.raises(InputError, match=r"makes updates of 64 images. .*no multiple of the 48 images"):
        continuation(recipe(), run, processes=3, approximate=True)
    # Smaller batches make it possible.
    fitting = continuation(recipe("train.batch_size=8"), run, processes=8, approximate=True)
    assert fitting.recipe.train.parts(8) == 1


def test_the_recipe_it_was_started_with_still_fits_afterwards(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2)
    found = continuation(recipe(), run, processes=1, approximate=True)
    facts = {"update": 0, "processes": 1, "exact": False, "changed": found.changed}
    run.note_resumed(found.recipe, facts)
    assert run.recipe().train.global_batch_size == 32
    again = continuation(recipe("train.accumulate=2"), run, processes=1, approximate=False)
    assert again.exact and again.recipe.train.parts(1) == 2


def test_a_run_of_before_these_facts_were_kept_goes_on(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    path = run.path / "environment.json"
    facts = json.loads(path.read_text())
    del facts["processes"], facts["resumed"]
    path.write_text(json.dumps(facts))
    assert continuation(recipe(), run, processes=1, approximate=False).exact


def test_a_kill_between_the_two_files_of_a_resumption_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    """The recipe in force is written, who trains by it not yet: the images of an update must not be reckoned anew."""
    run = begun(tmp_path / "run", 3)
    found = continuation(recipe("train.batch_size=24"), run, processes=2, approximate=True)
    assert found.recipe.train.global_batch_size == 48
    (run.path / "recipe.yaml").write_text(dump_recipe(found.recipe))
    again = continuation(run.recipe(), run, processes=2, approximate=True)
    assert again.recipe.train.global_batch_size == 48 and again.recipe.train.parts(2) == 1
