"""Run folders that are damaged, foreign, doubled or of other versions. If these fail, one bad folder hides the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from masksub.app.errors import InputError
from masksub.app.evidence.gather import gather
from masksub.app.evidence.model import Arm, Evidence, Problem
from masksub.app.report.language import Language
from masksub.app.report.record_tables import run_tables

from .made_up_runs import recipe, write_arm, write_run

WIN, PLAIN = [96.0, 96.4, 96.2], [94.0, 94.5, 94.4]


def arm(evidence: Evidence, key: str) -> Arm:
    found = evidence.arm(key)
    assert found is not None, f"no arm {key} among {[each.key for each in evidence.arms]}"
    return found


def problem(evidence: Evidence, kind: str) -> Problem:
    found = [each for each in evidence.problems if each.kind == kind]
    assert len(found) == 1, evidence.problems
    return found[0]


def test_searched_three_levels_deep_and_past_what_is_no_run(tmp_path: Path) -> None:
    write_arm(tmp_path / "a" / "b", "plain", PLAIN[:1])
    write_run(tmp_path / "a" / ".hidden-s1", recipe("seed=1"))
    write_run(tmp_path / "a" / "b" / "plain-s0.replaced-1", recipe("seed=2"))
    write_run(tmp_path / "a" / "b" / "c" / "deep-s3", recipe("seed=3"))
    (tmp_path / "a" / "b" / "plain-s0" / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").write_text("a user's own recipe, beside the runs", encoding="utf-8")
    assert [run.path for each in gather([tmp_path]).arms for run in each.runs] == [str(tmp_path / "a/b/plain-s0")]
    run = tmp_path / "a" / "b" / "plain-s0"
    assert [each.path for each in gather([run, tmp_path / "a"]).arms[0].runs] == [str(run)]  # once


def test_empty_and_foreign_folders_are_named(tmp_path: Path) -> None:
    write_arm(tmp_path / "runs", "plain", PLAIN)
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("no run")
    (tmp_path / "runs" / "plain-s9").mkdir()  # beside runs, begun and killed at once
    found = gather([tmp_path / "runs", tmp_path / "empty", tmp_path / "foreign"])
    told = [(Path(each.path).name, each.kind) for each in found.problems]
    assert told == [("plain-s9", "empty"), ("empty", "empty"), ("foreign", "foreign")]
    with pytest.raises(
        InputError, match=r"^no complete run to report on in(.|\n)*empty: the folder is empty(.|\n)*foreign: no run"
    ):
        gather([tmp_path / "empty", tmp_path / "foreign"])


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, said in (("nowhere", "there is no such"), ("file", "is a file")):
        with pytest.raises(InputError, match=f"{path}: {said}"):
            gather([tmp_path / path])


@pytest.mark.parametrize(
    ("name", "text", "status", "said", "code"),
    [
        ("recipe.yaml", "model: [", None, "can't be read", "bad-recipe"),
        ("recipe.yaml", "model: {name: a}\ntrain: {epochs: 1}\nnew_key: 1\n", None, "new_key", "bad-recipe"),
        ("summary.json", '{"method": "mask', "incomplete", "cut off", "cut-off"),
        ("summary.json", '{"final": {"top1": NaN}}', "incomplete", "lacks figures", "lacks-figures"),
        ("summary.json", "[]", "incomplete", "object", "not-an-object"),
        ("environment.json", "{", "complete", "cut off", "cut-off"),
        ("classes.json", "{}", "complete", "list", "not-a-list"),
    ],
)
def test_a_file_that_can_not_be_read(
    tmp_path: Path, name: str, text: str, status: str | None, said: str, code: str
) -> None:
    """Is named, once, and the rest is used."""
    write_arm(tmp_path, "plain", PLAIN)
    (tmp_path / "plain-s1" / name).write_text(text, encoding="utf-8")
    found = gather([tmp_path])
    told = problem(found, "unreadable")
    assert told.path == str(tmp_path / "plain-s1" / name) and said in told.message
    assert told.values["code"] == code
    assert len(found.problems) == 1
    statuses = {run.seed: run.status for run in arm(found, "plain").runs}
    assert statuses.get(1) == status and statuses[0] == statuses[2] == "complete"


def test_lines_of_metrics_that_can_not_be_read(tmp_path: Path) -> None:
    """A cut off last line is normal. One in the middle is not, and what follows it is still used."""
    write_arm(tmp_path, "plain", PLAIN)
    path = tmp_path / "plain-s0" / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"kind": "tra', encoding="utf-8")
    assert gather([tmp_path]).problems == ()
    path.write_text("\x00\x00\n" + whole, encoding="utf-8")
    found = gather([tmp_path])
    assert "1 of 9 lines" in problem(found, "unreadable").message
    assert len(arm(found, "plain").curves["top1"].mean) == 4


def test_incomplete_and_pruned_runs_are_named(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", PLAIN)
    run = write_run(tmp_path / "plain-s3", recipe("method=plain", "seed=3"), status="incomplete")
    (run / "pruned.json").write_text('{"update": 80, "reason": "behind the median"}')
    (tmp_path / "plain-s4").mkdir()
    for name in ("classes.json", "environment.json"):
        shutil.copy(tmp_path / "plain-s0" / name, tmp_path / "plain-s4")
    found = gather([tmp_path])
    messages = [each.message for each in found.problems if each.kind == "incomplete"]
    assert len(messages) == 2
    assert "5 of 10 epochs, pruned: behind the median" in messages[0] and "no recipe.yaml" in messages[1]
    assert [run.status for run in arm(found, "plain").runs] == ["complete"] * 3 + ["incomplete"]
    assert arm(found, "plain").top1 is not None


def test_nothing_complete(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", PLAIN, status="incomplete")
    with pytest.raises(InputError, match=r"plain-s2: the run is not complete"):
        gather([tmp_path])
    with pytest.raises(InputError, match="no folder was named"):
        gather([])


def test_other_versions_are_left_out_and_named(tmp_path: Path) -> None:
    write_arm(tmp_path, "plain", PLAIN, torch="2.6.0+cpu")
    write_arm(tmp_path, "masksub", WIN[:2], torch="2.6.0+cu124")  # another build, the same version
    write_run(tmp_path / "masksub-s2", recipe("seed=2"), 96.2, torch="2.7.1")
    found = gather([tmp_path])
    assert [run.seed for run in arm(found, "masksub").runs] == [0, 1]
    told = problem(found, "version")
    assert told.path.endswith("masksub-s2") and "2.7.1" in told.message and "left out" in told.message
    mixed = gather([tmp_path], mixed_versions=True)
    assert len(arm(mixed, "masksub").runs) == 3 and "used all the same" in problem(mixed, "version").message


def test_a_seed_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    """Else a run copied into a second folder makes the interval narrower."""
    write_run(tmp_path / "a" / "plain-s0", recipe("method=plain"), status="incomplete")
    write_run(tmp_path / "b" / "plain-s0", recipe("method=plain"), 94.0)
    write_run(tmp_path / "c" / "plain-s0", recipe("method=plain"), 94.2)
    found = gather([tmp_path])
    assert [run.path for run in arm(found, "plain").runs] == [str(tmp_path / "b" / "plain-s0")]
    doubles = [each for each in found.problems if "other" in each.values]
    assert [Path(each.path).parent.name for each in doubles] == ["a", "c"] and "a double of" in doubles[0].message


@pytest.mark.parametrize("top1", [[94.0, 94.5, 94.2], [94.0, 94.8, 94.2]])
def test_what_two_folders_have_in_common_is_told_in_one_line(tmp_path: Path, top1: list[float]) -> None:
    """A sweep tries the setting of the comparison, too: else the report of both has a warning for each seed."""
    write_arm(tmp_path / "x-compare", "plain", PLAIN)
    write_arm(tmp_path / "x-compare", "masksub", [94.0, 94.5, 94.2])
    write_arm(tmp_path / "x-sweep", "masksub", top1)
    [told] = gather([tmp_path / "x-compare", tmp_path / "x-sweep"]).problems
    assert (told.kind, told.path) == ("double", str(tmp_path / "x-sweep"))
    assert told.message.startswith(f"3 runs are also in {tmp_path / 'x-compare'} (the same recipe and seed) and count")
    assert ("1 of them ended at another top-1 here, by up to 0.30 points" in told.message) == (94.8 in top1)
    for code, words in (("en", "3 runs are also in"), ("ja", "3 件の実行は")):
        tables = run_tables(gather([tmp_path / "x-compare", tmp_path / "x-sweep"]), Language(code))
        [row] = tables[-1].rows
        assert words in row[2] and ("0.30" in row[2]) == (94.8 in top1)
