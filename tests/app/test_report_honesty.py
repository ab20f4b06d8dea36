"""Sentences of a report that would be false although each figure is right. If these fail, the page misleads."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import scipy.stats

from masksub.app.errors import InputError
from masksub.app.evidence import statistics
from masksub.app.evidence.gather import gather
from masksub.app.evidence.model import Evidence, Problem, Sweep
from masksub.app.report import write_report
from masksub.app.report.inputs import draw_inputs
from masksub.app.report.language import LANGUAGES, Language, plain_text
from masksub.app.report.statements import data_name, other_keys
from masksub.app.report.verdict import state_verdict

from .made_up import HOSTILE, make_arm, make_evidence, make_sweep, situation
from .made_up_runs import recipe, write_arm, write_run

ALL = (0, 1, 2, 3, 4)


def told(evidence: Evidence, code: str = "en") -> str:
    language = Language(code)
    texts = [plain_text(language.say(each.key, **each.values)) for each in state_verdict(evidence)]
    return "\n".join(texts).replace("\u00a0", " ")


def page(evidence: Evidence, code: str = "en") -> str:
    """Without scripts."""
    return re.sub("<script.*?</script>", "", str(write_report(evidence, language=code)), flags=re.DOTALL)


def test_differences_that_are_all_equal_claim_nothing() -> None:
    """No variance is no certainty; and the sentence must not speak of too few seeds, or of bounds there are none of."""
    said, japanese = told(situation("all seeds differ alike")), told(situation("all seeds differ alike"), "ja")
    assert "all seeds of MaskSub differ from plain training by the same +1.67 points: no interval can be given" in said
    assert "すべてのシードで同じ +1.67 ポイントである。信頼区間を示せない" in japanese
    assert "p = 0.062 by an exact sign-flip test" in said and "Too few seeds" not in said and "three seeds" not in said
    same = told(situation("all seeds are the same"))
    assert "ended the same with each of 5 seeds" in same and "contains 0" not in same


def test_an_interval_without_0_is_not_said_to_contain_it() -> None:
    evidence = situation("win")
    arms = [
        dataclasses.replace(arm, versus={key: dataclasses.replace(each, p=0.0625) for key, each in arm.versus.items()})
        for arm in evidence.arms
    ]
    said = told(dataclasses.replace(evidence, arms=tuple(arms), sweep=None))
    assert "contains 0" not in said and "excludes 0, but the p-value (p = 0.062) does not bear it out" in said


def test_runs_that_failed_are_not_said_to_be_missing() -> None:
    """Someone would train again what only has to be mended."""
    plain, equal = told(situation("plain failed")), told(situation("plain-equal failed"))
    assert "there is no plain run" not in plain and "No run of plain training is complete" in plain.replace("no", "No")
    assert "not tried" not in equal and "at equal compute there is nothing to compare with yet" in equal
    assert "equal compute was not tried" in told(situation("no plain-equal"))
    assert "No complete run has evaluations" in page(situation("only failed"))
    only = told(situation("only comparators"))
    assert "no run with a sub branch" not in only and "no run of MaskSub" in only


def test_epochs_that_differ_are_never_called_equal() -> None:
    for code, phrase in (("en", "at equal epochs"), ("ja", "同一エポック数")):
        assert phrase not in told(situation("other epochs"), code).lower()
        assert phrase in told(situation("win"), code).lower()


def test_other_keys_in_which_the_arms_differ_are_told() -> None:
    """The gain may come from a learning rate."""
    evidence = situation("another learning rate")
    for code, text in (("en", "The arms also differ in optim.lr"), ("ja", "optim.lr も異なる")):
        assert text in told(evidence, code)
        assert text in page(evidence, code).split("<dl")[0], "it stands below the headline"
    plain, equal, who = (evidence.arm(key) for key in ("plain", "plain-equal", "masksub"))
    assert plain and equal and who
    assert other_keys(who, plain) == other_keys(who, equal) == ["optim.lr"], (
        "longer plain training is longer on purpose"
    )
    both = dataclasses.replace(equal, changes={**equal.changes, "optim.lr": (0.002, 0.001)})
    assert other_keys(who, both) == []
    assert "also differ" not in told(situation("win"))


def test_the_recommended_setting_is_compared_once() -> None:
    """Two differences of one setting, over other seeds, would contradict each other on one page."""
    evidence = situation("win")
    sweep, who = evidence.sweep, evidence.arm("masksub")
    assert sweep is not None and sweep.recommended is not None and who is not None
    assert re.search(r"This setting is better than plain training at equal epochs: .*, 3 seeds\)", told(evidence))
    points = list(sweep.points)
    points[sweep.recommended] = dataclasses.replace(points[sweep.recommended], runs=who.runs[:3])
    said = told(dataclasses.replace(evidence, sweep=dataclasses.replace(sweep, points=tuple(points))))
    assert "This setting is better" not in said and "It is the setting of MaskSub above" in said


def test_a_setting_with_other_epochs_or_learning_rate() -> None:
    def swept(key: str, value: float) -> str:
        sweep: Sweep = make_sweep()
        points = [dataclasses.replace(each, settings={**each.settings, key: value}) for each in sweep.points]
        made = dataclasses.replace(sweep, keys=(*sweep.keys, key), points=tuple(points))
        return told(dataclasses.replace(situation("win"), sweep=made))

    assert "than plain training of another number of epochs" in swept("train.epochs", 80.0)
    assert "It also differs from plain training in optim.lr" in swept("optim.lr", 0.5)
    assert "It also differs" not in swept("optim.lr", 0.002)


def test_what_more_seeds_would_bring_is_computed() -> None:
    """Of few seeds the interval narrows by more than the root of their number."""
    found = next(each for each in state_verdict(situation("noise")) if each.key == "next.more-seeds")
    t = scipy.stats.t.ppf(0.975, [4, 19])
    assert found.values["share"] == pytest.approx(t[1] / 20**0.5 / (t[0] / 5**0.5))
    assert "about 38 % of its width" in told(situation("noise"))


def test_plain_training_reaches_its_own_accuracy_early() -> None:
    """A share of plain's operations says nothing without plain's own."""
    evidence = situation("win")
    assert "first reaches" in told(evidence) and "own curve first does at 60 %" in told(evidence)
    arms = tuple(dataclasses.replace(arm, flops_to_plain=2e13) for arm in evidence.arms)
    assert "own curve first does at 50 %" in told(dataclasses.replace(evidence, arms=arms))
    assert "自身の曲線では 50%" in told(dataclasses.replace(evidence, arms=arms), "ja")


def test_tables_name_pairs_and_runs_and_link_them() -> None:
    """A mean over three seeds beside one over five must be seen; each run is one click away."""
    text = page(situation("failed seed"))
    accuracy, stability = (
        text.split(f'id="table-{name}"')[1].split('class="table"')[0] for name in ("accuracy", "stability")
    )
    assert accuracy.count(">p-value (pairs)</th>") == 2 and re.search(r"MaskSub</th>.*? \(4\)</td>", accuracy)
    assert '<a href="#run-11">11</a>–<a href="#run-13">13</a>' in accuracy and 'id="run-11"' in text
    assert "Runs, by their numbers" in stability and '<a href="#run-15">15</a>' in stability
    assert "\ue002" not in str(write_report(situation("win"), format="md"))
    assert "1 of 5 runs diverged; no mean" in told(situation("failed seed"))
    two = str(write_report(situation("two seeds"), format="md"))
    assert re.search(r"^\| MaskSub \| 2 \| 40 \| 94\.80 \|", two, re.MULTILINE), "of two seeds the mean stands alone"


def test_json_tells_the_verdict_of_each_difference() -> None:
    data = json.loads(str(write_report(situation("noise"), format="json")))
    assert {each["verdict"] for arm in data["evidence"]["arms"][2:3] for each in arm["versus"].values()} == {"none"}
    swept = json.loads(str(write_report(situation("win"), format="json")))["evidence"]["sweep"]["points"]
    assert swept[4]["versus_plain"]["verdict"] == "better"


def test_every_method_of_statistics_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else English stands in a Japanese sentence."""

    def method(count: int, how: str, values: tuple[float, ...] = ()) -> str:
        ours = dict(enumerate(values or [float(n**2 % 7) for n in range(count)]))
        return statistics.paired(ours, dict.fromkeys(ours, 0.0), "plain", method=how).method

    made = {method(5, how) for how in statistics.METHODS} | {method(15, "bootstrap")}
    made |= {method(1, "t"), method(0, "t"), method(3, "t", (1.0, 1.0, 1.0))}
    real = scipy.stats.bootstrap

    def undefined(*args: object, method: str, **more: object) -> object:
        found = real(*args, method="percentile", **more)
        bounds = (float("nan"), float("nan")) if method == "BCa" else found.confidence_interval
        return dataclasses.make_dataclass("Found", ["confidence_interval"])(bounds)

    monkeypatch.setattr(scipy.stats, "bootstrap", undefined)
    made |= {method(5, "bootstrap"), method(15, "bootstrap")}
    assert len(made) == 8
    for code in LANGUAGES:
        assert all(Language(code).has(f"method.{name}") for name in made), made
    # Each text of the module that names a method is among those that were made here.
    for text in re.findall(r'"((?:paired |one pair|no pair|all diff)[^"{]+)"', Path(statistics.__file__).read_text()):
        assert text in made


def test_every_problem_is_told_in_japanese(tmp_path: Path) -> None:
    """Found and not used, in the reader's language: an English sentence at most within brackets, as a quotation."""
    for key in ("plain", "masksub"):
        write_arm(tmp_path, key, [94.0, 94.5, 94.4, 94.3])
    (tmp_path / "plain-s0" / "classes.json").unlink()
    (tmp_path / "plain-s1" / "environment.json").write_text("{")
    (tmp_path / "plain-s2" / "environment.json").write_text("[]")
    (tmp_path / "plain-s3" / "classes.json").write_text("{}")
    (tmp_path / "masksub-s0" / "summary.json").write_text("{}")
    metrics = tmp_path / "masksub-s1" / "metrics.jsonl"
    metrics.write_text("x\n" + metrics.read_text())
    (tmp_path / "masksub-s3" / "recipe.yaml").write_text("a: [")
    (tmp_path / "plain-s9").mkdir()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("")
    write_run(tmp_path / "masksub-s4", recipe("seed=4"), status="failed")
    pruned = write_run(tmp_path / "masksub-s5", recipe("seed=5"), status="incomplete")
    (pruned / "pruned.json").write_text('{"reason": "behind the median"}')
    write_run(tmp_path / "masksub-s6", recipe("seed=6"), status="incomplete")
    write_run(tmp_path / "masksub-s7", recipe("seed=7"), torch="2.7.1")
    write_run(tmp_path / "again" / "masksub-s1", recipe("seed=1"), 12.0)
    (tmp_path / "masksub-s8").mkdir()
    for name in ("classes.json", "environment.json"):
        (tmp_path / "masksub-s8" / name).write_bytes((tmp_path / "masksub-s7" / name).read_bytes())
    for mixed in (False, True):
        evidence = gather([tmp_path, tmp_path / "letters"], mixed_versions=mixed)
        codes = {each.values.get("code", each.kind) for each in evidence.problems}
        assert len(codes) >= 12, codes
        table = page(evidence, "ja").split('id="table-problems"')[1].split("</table>")[0]
        whys = re.findall(r"<td>((?:(?!<td>).)*)</td></tr>", table)
        assert len(whys) == len(evidence.problems)
        for why in whys:
            outside = re.sub("「.*」", "", why.replace(str(tmp_path), ""))
            known = re.sub("recipe.yaml|masksub|torch|JSON|again|top-1|s[0-9]", "", outside)
            assert re.search("[ぁ-ん]", outside) and not re.search("[A-Za-z]{4}", known), why
    assert "使った。" in table
    text = page(evidence, "ja")
    assert "発散：「the loss of the main branch is not finite」" in text


def test_a_problem_of_an_unknown_kind_is_told_as_it_came() -> None:
    problem = Problem("runs/x", "foreign", "something new", {"code": "new"})
    for code in LANGUAGES:
        assert "something new" in page(make_evidence(make_arm("plain", 90.0), problems=(problem,)), code)


@pytest.mark.parametrize(
    "error", [IndexError("no image 3"), InputError("changed"), TypeError("x"), ZeroDivisionError()]
)
def test_images_that_can_not_be_drawn_do_not_cost_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from masksub.app.report import inputs
    from masksub.app.runs import RunFolder

    RunFolder(tmp_path / "run").create(recipe(), [*"0123456789"], ["masksub"])
    arm = make_arm("masksub", 90.0, seeds=1)
    evidence = make_evidence(
        dataclasses.replace(arm, runs=(dataclasses.replace(arm.runs[0], path=str(tmp_path / "run")),))
    )
    assert draw_inputs(evidence, Language("en")).pairs

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(inputs, "prepare", broken)
    found = draw_inputs(evidence, Language("en"))
    assert found.pairs == () and (str(error) or type(error).__name__) in found.note


def test_images_of_other_classes_are_left_out(tmp_path: Path) -> None:
    """A folder that changed would show images under another class's name."""
    from masksub.app.runs import RunFolder

    RunFolder(tmp_path / "run").create(recipe(), ["cat", "dog"], ["masksub"])
    arm = make_arm("masksub", 90.0, seeds=1)
    arm = dataclasses.replace(arm, runs=(dataclasses.replace(arm.runs[0], path=str(tmp_path / "run")),))
    found = draw_inputs(make_evidence(arm), Language("en"))
    assert found.pairs == () and "not those of the runs any more" in found.note


def test_a_folder_of_images_is_called_by_its_name() -> None:
    """ "folder" tells nobody which data it was."""
    for train, name in (
        ("/data/flowers/train", "flowers/train"),
        ("photos", "photos"),
        ("/train", "train"),
        (HOSTILE, None),
    ):
        evidence = make_evidence(
            make_arm("masksub", 90.0), recipe={"data": {"name": "folder", "train": train}, "model": {"name": "m"}}
        )
        assert name is None or data_name(evidence) == name
        assert name is None or f"{name} (10 classes) · m · 5 runs" in page(evidence)
        assert "<img src=x" not in page(evidence)
    assert "which images the validation set holds" in told(situation("win"))


@pytest.mark.parametrize(
    ("code", "phrase"), [("en", "could not be read were left out"), ("ja", "読み込めない画像を除外")]
)
def test_images_that_were_left_out_are_told_in_every_format(code: str, phrase: str, tmp_path: Path) -> None:
    """Else an accuracy on fewer images than the folder holds reads as one on all of them."""
    write_arm(tmp_path / "runs", "plain", [90.0, 91.0])
    counts = {"skipped_images": 7, "skipped_validation_images": 3}
    write_arm(tmp_path / "runs", "masksub", [92.0, 93.0], summary=counts)
    evidence = gather([tmp_path / "runs"])
    for format in ("html", "md", "json"):
        text = str(write_report(evidence, language=code, format=format))
        [line] = [line for line in text.splitlines() if phrase in line]
        line = re.sub("<a [^>]*>|</a>", "", line)
        found = re.findall("[0-9]+", line.replace("&#39;", ""))
        assert {"7", "3", "2"} <= {*found}, line
    masked = [run for arm in evidence.arms if arm.key == "masksub" for run in arm.runs]
    assert [(run.skipped_images, run.skipped_validation_images) for run in masked] == [(7, 3), (7, 3)]
    [said] = [each for each in state_verdict(evidence) if each.key == "certainty.skipped"]
    assert said.values["runs"] == [3, 4], "only those that left something out, by their number in the table"
    assert "could not be read" not in told(situation("win"))
