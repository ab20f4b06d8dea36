"""What a report says, in every language and format, about evidence that is made up."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import re
import string
from html.parser import HTMLParser
from pathlib import Path

import pytest

from masksub.app.errors import InputError
from masksub.app.evidence.model import Evidence, Problem
from masksub.app.experiment.arms import ARMS
from masksub.app.report import find_analyses, write_report
from masksub.app.report.charts import chart_text
from masksub.app.report.inputs import draw_inputs
from masksub.app.report.language import LANGUAGES, Language, plain_text
from masksub.app.report.statements import PARTS, Statement
from masksub.app.report.tables import run_numbers
from masksub.app.report.verdict import state_verdict
from masksub.core.methods import METHODS
from tests.app.made_up import HOSTILE, SITUATIONS, make_arm, make_evidence, situation

ANALYSIS = {
    "gradients": {
        "batches": 4,
        "main": {"norm": {"mean": 1.25}},
        "at_ratio": [
            {"ratio": 0.1, "labels": {"norm": {"mean": 9.0}}},
            {"ratio": 0.5, "labels": {"norm": {"mean": 2.5}, "cosine_with_main": {"mean": 0.125}}, "relaxed": None},
        ],
    },
    "sharpness": {"ratio": 0.45, "main": {"curvature": 17}},
    "evaluation": {"points": [{"ratio": 0.9, "top1_percent": {"mean": 61.0}}]},
}
"""As much of a result of ``masksub analyze`` as a test needs."""
DAY = datetime.date(2026, 11, 24)


def keys(name: str) -> list[str]:
    return [each.key for each in state_verdict(situation(name))]


def said(name: str, key: str) -> Statement:
    return next(each for each in state_verdict(situation(name)) if each.key == key)


def sentences(evidence: Evidence, code: str) -> dict[str, str]:
    language = Language(code)
    return {each.key: plain_text(language.say(each.key, **each.values)) for each in state_verdict(evidence)}


def test_an_interval_that_its_p_value_does_not_bear_out_claims_nothing() -> None:
    """A bootstrap interval of few seeds is too narrow: what it says alone would be more than the figures."""
    evidence = situation("win")
    who = evidence.arm("masksub")
    assert who is not None
    versus = {key: dataclasses.replace(paired, p=0.0625) for key, paired in who.versus.items()}
    arms = tuple(dataclasses.replace(arm, versus=versus) if arm is who else arm for arm in evidence.arms)
    found = [each.key for each in state_verdict(dataclasses.replace(evidence, arms=arms))]
    assert "headline.compute.none" in found and "certainty.disputed" in found and "compute.better" not in found
    assert "certainty.disputed" not in keys("win")


@pytest.mark.parametrize(
    ("name", "expected", "never"),
    [
        ("win", ["headline.compute.better", "epochs.better", "compute.better", "recommended.sweep"], ["next.seeds"]),
        ("loss", ["headline.compute.worse", "epochs.worse", "compute.worse", "recommended.stay"], ["next.longer"]),
        ("noise", ["headline.compute.none", "epochs.none", "compute.none", "next.more-seeds"], ["recommended.stay"]),
        ("win at epochs, loss at compute", ["headline.compute.worse", "epochs.better", "recommended.longer"], []),
        ("failed seed", ["headline.failed", "certainty.failed", "certainty.survivors", "next.failed"], []),
        ("all seeds failed", ["headline.no-run", "certainty.failed"], ["epochs.better", "recommended.sweep"]),
        ("every run failed", ["recommended.only-failed", "next.failed"], ["recommended.unswept", "next.sweep"]),
        ("every run failed in fp16", ["next.failed-fp16"], ["next.failed", "recommended.none-complete", "next.edge"]),
        ("no plain-equal", ["headline.epochs.better", "compute.no-arm", "next.plain-equal"], ["compute.better"]),
        ("no plain", ["headline.compute.better", "epochs.no-arm", "cost.alone", "next.plain"], ["cost.flops"]),
        ("masksub alone", ["headline.no-reference", "certainty.nothing", "next.seeds"], ["epochs.better"]),
        ("no sub branch", ["headline.no-sub", "next.run-masksub"], ["epochs.no-arm"]),
        ("dropsub", ["headline.unequal.better", "unequal.better"], ["compute.better", "next.sweep"]),
        ("two seeds", ["headline.compute.unknown", "epochs.unknown", "certainty.few"], ["next.longer"]),
        ("one seed", ["headline.compute.unknown", "epochs.unknown", "certainty.few"], ["certainty.spread"]),
        ("sweep at its edge", ["next.edge"], []),
        ("nothing", ["headline.no-sub"], ["limits.one"]),
        ("all seeds differ alike", ["headline.epochs.no-interval", "epochs.no-interval", "certainty.equal"], []),
        ("all seeds are the same", ["headline.epochs.none", "epochs.same", "certainty.equal"], ["epochs.none"]),
        ("plain failed", ["headline.no-pairs", "epochs.none-complete", "cost.alone"], ["epochs.no-arm", "next.plain"]),
        ("plain-equal failed", ["headline.epochs.better", "compute.none-complete"], ["compute.no-arm"]),
        ("only failed", ["headline.no-run", "next.failed"], ["headline.no-sub", "next.failed-fp16"]),
        ("other epochs", ["epochs.differ", "headline.compute.better"], ["headline.epochs.better"]),
        ("another learning rate", ["gain.confounded", "recommended.confounded"], []),
    ],
)  # fmt: skip
def test_the_verdict_is_what_the_figures_say(name: str, expected: list[str], never: list[str]) -> None:
    """Else somebody decides from a sentence that the runs don't back."""
    found = keys(name)
    assert set(expected) <= set(found), found
    assert not set(never) & set(found), found


@pytest.mark.parametrize("code", LANGUAGES)
@pytest.mark.parametrize("name", SITUATIONS)
def test_a_sentence_never_claims_more_than_the_interval(name: str, code: str) -> None:
    """No word for better or worse where 0 is in the interval or there are too few seeds, in either language."""
    claims = {"en": r"is better|is worse", "ja": r"優れて|劣る|高い。|低い。"}[code]
    none = {"en": "o difference seen", "ja": "差は認められなかった"}[code]
    language = Language(code)
    for each in state_verdict(situation(name)):
        text = plain_text(language.say(each.key, **each.values)).replace(HOSTILE, "")
        assert bool(re.search(claims, text)) is (each.tone in ("better", "worse") and "mean" in each.values), text
        if each.tone == "none" and "mean" in each.values:
            assert each.values["low"] <= 0 <= each.values["high"] and none in text, text
        if each.tone in ("better", "worse") and "mean" in each.values:
            assert each.values["low"] * each.values["high"] > 0, text


def test_every_part_is_there_and_limits_are_always_told() -> None:
    """The reader is promised the same seven questions, whatever the answers."""
    parts = [each.part for each in state_verdict(situation("win"))]
    assert list(dict.fromkeys(parts)) == list(PARTS)
    for name in SITUATIONS:
        assert {"headline", "recommended", "next", "limits"} <= {each.part for each in state_verdict(situation(name))}


def test_figures_of_the_verdict_are_those_of_the_evidence() -> None:
    """A sentence with another arm's figure would be worse than none."""
    evidence = situation("win")
    masksub, plain = evidence.arms[2], evidence.arms[0]
    for part, reference in (("epochs", "plain"), ("compute", "plain-equal")):
        statement = said("win", f"{part}.better")
        at = masksub.versus[reference].interval
        assert (statement.values["mean"], statement.values["low"], statement.values["high"]) == (
            at.mean,
            at.low,
            at.high,
        )
    assert masksub.flops and plain.flops and masksub.flops_to_plain
    assert said("win", "cost.flops").values["ratio"] == masksub.flops / plain.flops
    assert said("win", "cost.reach-own").values["share"] == masksub.flops_to_plain / plain.flops
    assert said("failed seed", "certainty.failed").values["seeds"] == [3]
    assert said("failed seed", "headline.failed").values == {"who": "masksub", "n": 1, "all": 5}
    assert said("win", "certainty.sweep-failed").values["n"] == 1


def test_english_and_japanese_sentences_and_numbers() -> None:
    """Expected texts written by hand: dates, signs, units and the unclaimed difference."""
    win, noise = (sentences(situation(name), "en") for name in ("win", "noise"))
    assert "+2.50\u00a0points of top-1 (95\u00a0% interval +2.30 to +2.70, 5 seeds)" in win["epochs.better"]
    assert noise["headline.compute.none"].startswith("At equal compute, no difference seen")
    win, noise = (sentences(situation(name), "ja") for name in ("win", "noise"))
    assert "差は +2.50\u00a0ポイント（95%信頼区間 +2.30 〜 +2.70、5 シード）" in win["epochs.better"]
    assert noise["headline.compute.none"] == "同一計算量で比べて、MaskSub と通常学習の間に差は認められなかった。"
    english, japanese = Language("en"), Language("ja")
    assert english.say("page.lead", data="d", model="m", runs=1, date=DAY).endswith("1 run · 24 November 2026")
    assert japanese.say("page.lead", data="d", model="m", runs=1, date=DAY).endswith("2026年11月24日")
    assert english.format_field(-0.004, "signed") == "\u22120.004", "a bound that is not 0 must not read as 0"
    assert (
        japanese.format_field(3725, "duration") == "1時間02分" and english.format_field(252, "duration") == "4 min 12 s"
    )
    assert english.format_field(2.5e15, "flops") == "2.5 PFLOP" and english.format_field(3 * 2**30, "bytes") == "3 GiB"
    assert english.format_field([5, 0, 1, 2], "numbers") == "0–2, 5"
    with_interval = english.say("with", value="a", more=english.say("table.interval", level=0.95))
    assert with_interval == "a (95\u00a0% interval)", "a sentence within a sentence loses its spaces"
    assert english.code_span("a\n\u3000b\u202ec").strip("\ue000\ue001") == "a \u3000bc", "direction marks mislead"
    assert english.arm("masksub sub.ratio=0.75") == "MaskSub sub.ratio=0.75"


def test_languages_say_the_same_things() -> None:
    """Each has every message with the same values, and a name for every arm and method."""

    def fields(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    english, japanese = LANGUAGES["en"], LANGUAGES["ja"]
    assert english.keys() == japanese.keys()
    free = {"problem.", "date"}
    for key in english:
        if not key.startswith(tuple(free)):
            assert fields(english[key]) == fields(japanese[key]), key
        assert english[key].count("`") % 2 == japanese[key].count("`") % 2 == 0, key
    assert {f"arm.{key}" for key in (*ARMS, *METHODS)} <= english.keys()
    letters = re.compile("[ぁ-んァ-ヶ一-龠]")
    same = [key for key in english if english[key] == japanese[key] and re.search("[A-Za-z]{4}", english[key])]
    assert all(key.startswith(("arm.", "chart.alt-end")) for key in same), same
    assert sum(bool(letters.search(text)) for text in japanese.values()) > 0.85 * len(japanese)


@pytest.mark.parametrize("code", LANGUAGES)
@pytest.mark.parametrize("name", SITUATIONS)
def test_every_situation_is_written_in_every_format(name: str, code: str) -> None:
    """No hole in the evidence may end in a traceback."""
    evidence = situation(name)
    data = json.loads(str(write_report(evidence, language=code, format="json", day=DAY)))
    assert [each["key"] for each in data["verdict"]] == keys(name) and all(each["text"] for each in data["verdict"])
    assert len(data["evidence"]["arms"]) == len(evidence.arms)
    assert str(write_report(evidence, language=code, format="md", day=DAY)).startswith("# ")
    page = str(write_report(evidence, language=code, day=DAY))
    assert f'<html lang="{code}">' in page and "2026" in page and "\ue000" not in page


def test_values_that_json_lacks_become_null() -> None:
    """NaN in a curve would make JSON that no parser takes."""
    arm = make_arm("masksub", 90.0)
    curve = arm.curves["loss"]
    broken = dataclasses.replace(curve, mean=[float("nan"), float("inf"), *curve.mean[2:]])
    evidence = make_evidence(dataclasses.replace(arm, curves={**arm.curves, "loss": broken}))
    data = json.loads(str(write_report(evidence, format="json")), parse_constant=pytest.fail)
    assert data["evidence"]["arms"][0]["curves"]["loss"]["mean"][:2] == [None, None]
    assert "<svg" in str(write_report(evidence))


def test_every_mean_names_its_runs_and_every_run_its_folder() -> None:
    """A figure that can't be traced to a folder is not evidence."""
    evidence = situation("failed seed")
    text = str(write_report(evidence, format="md", day=DAY))
    numbers = run_numbers(evidence)
    assert "Plain: 1–5; Plain, equal compute: 6–10; MaskSub: 11–13, 15." in text
    for path, number in numbers.items():
        assert re.search(rf"^\| {number} \|.*`{re.escape(path)}` \|$", text, re.MULTILINE), path
    assert "diverged: loss of the main branch is not finite" in text and "4 of 5" in text


class Elements(HTMLParser):
    """Names of elements and attributes of a page, and what its headings and tables are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("code", LANGUAGES)
def test_hostile_names_are_text_in_html(code: str) -> None:
    """Class names, run names, paths, recipe values, reasons: none may become an element or end a script."""
    parser = Elements()
    page = str(write_report(situation("hostile"), language=code))
    parser.feed(page)
    assert not [tag for tag, attributes in parser.found if "onerror" in attributes or tag in ("b", "img")]
    harmless = Elements()
    harmless.feed(str(write_report(situation("win"), language=code)))
    scripts = [sum(tag == "script" for tag, _ in each.found) for each in (parser, harmless)]
    assert scripts[0] == scripts[1], "a name began or ended a script element"
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > 50, "the names are shown"
    assert "{{ 7*7 }} {0}" in page, "a name was read as a template"


def test_hostile_names_are_text_in_markdown_and_plotly() -> None:
    """A pull request renders HTML, pipes end cells, and Plotly reads tags in labels."""
    text = str(write_report(situation("hostile"), format="md"))
    outside = re.sub(r"(`+) ?.*?[^`]\1(?!`)", "", text)
    assert "<img" not in outside and "<script" not in outside and "<b>" not in outside
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table[:300]
    assert chart_text("<a href='javascript:1'>$x$ & y</a>") == (
        "&lt;a href='javascript:1'&gt;&#36;x&#36; &amp; y&lt;/a&gt;"
    )
    evidence = make_evidence(make_arm("masksub", 90.0), classes=("https://evil.example", "@team", "www.evil.example"))
    text = str(write_report(evidence, format="md"))
    assert "https://evil" not in text and "@team" not in text and "www.evil" not in text


def test_wrong_wishes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """The message names the value and what is accepted."""
    evidence = situation("win")
    with pytest.raises(InputError, match=r"'fr'.*en, ja"):
        write_report(evidence, language="fr", output=tmp_path / "r.html")
    with pytest.raises(InputError, match=r"'pdf'.*html, md, json"):
        write_report(evidence, format="pdf", output=tmp_path / "r.html")
    with pytest.raises(InputError, match="is a folder"):
        write_report(evidence, output=tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        write_report(evidence, output=tmp_path / "missing" / "r.html")
    assert list(tmp_path.iterdir()) == []
    assert write_report(evidence, format="md", output=tmp_path / "r.md") == tmp_path / "r.md"


def test_problems_are_told_in_the_readers_language() -> None:
    """Left out silently, a run would be missed by nobody."""
    values = {"seed": 3, "epoch": 2.5, "epochs": 10.0}
    problem = Problem("runs/a|b", "incomplete", "the run is not complete: 2.5 of 10 epochs", values)
    evidence = make_evidence(make_arm("plain", 90.0), problems=(problem, Problem("runs/x", "foreign", "no run")))
    assert "the run is not complete: 2.5 of 10 epochs" in str(write_report(evidence, format="md"))
    text = str(write_report(evidence, format="md", language="ja"))
    assert "10 エポック中 2.5 エポック" in text and "実行フォルダではない" in text and "not complete" not in text


def test_images_are_drawn_by_the_runs_own_recipe_or_left_out_with_the_reason(tmp_path: Path) -> None:
    """They show what the sub branch is really given: 8 x 8 digits in units of one patch."""
    from masksub.app.recipe import load_recipe
    from masksub.app.runs import RunFolder

    english = Language("en")
    gone = draw_inputs(situation("win"), english)
    assert gone.pairs == () and "there is no such run folder" in gone.note
    folder = tmp_path / "masksub-s0"
    recipe = load_recipe("digits/vit_micro")
    RunFolder(folder).create(recipe, [*"0123456789"], ["masksub"])
    arm = make_arm("masksub", 90.0, seeds=1)
    arm = dataclasses.replace(arm, runs=(dataclasses.replace(arm.runs[0], path=str(folder)),))
    inputs = draw_inputs(make_evidence(arm), english)
    assert len(inputs.pairs) == 6 and inputs.pairs[0].whole.startswith("data:image/png;base64,")
    assert "8 of 16 units are visible" in inputs.pairs[0].alt_masked and "2 × 2 px" in inputs.note
    assert all(pair.whole != pair.masked for pair in inputs.pairs)
    whole = draw_inputs(make_evidence(make_arm("dropsub", 90.0)), english)
    assert whole.pairs == () and "see" in whole.note and "whole" in whole.note


def test_analyses_beside_the_runs_are_shown(tmp_path: Path) -> None:
    """The latest of each run; a broken file is no reason for a traceback."""
    arm = make_arm("masksub", 90.0, seeds=2)
    runs = tuple(dataclasses.replace(run, path=str(tmp_path / str(run.seed))) for run in arm.runs)
    evidence = make_evidence(dataclasses.replace(arm, runs=runs))
    for seed, name, text in (
        (0, "update-000001.json", '{"run": "old"}'),
        (0, "update-000009.json", json.dumps({"run": "new<b>", **ANALYSIS})),
        (1, "update-000001.json", "{"),
    ):
        (tmp_path / str(seed) / "analysis").mkdir(parents=True, exist_ok=True)
        (tmp_path / str(seed) / "analysis" / name).write_text(text, encoding="utf-8")
    found = find_analyses(evidence)
    assert [each["run"] for each in found] == ["new<b>"]
    page = str(write_report(evidence, analysis=found))
    assert "new&lt;b&gt;" in page
    for label, value in (
        ("Gradient norm of the main branch", "1.25"),
        ("Gradient norm of a sub branch with true labels, 50\u00a0% masked", "2.5"),
        ("The same with true labels, 50\u00a0% masked", "0.125"),
        ("Curvature of the main branch’s loss along its gradient", "17"),
        ("Validation top-1 with 90\u00a0% masked, %", "61"),
    ):
        assert re.search(f"{re.escape(label)}</th><td[^>]*>{value}</td>", page), label
    assert "at_ratio" not in page and "gradients." not in page, "a raw name is shown"
    ours = write_report(evidence, language="ja", analysis=[{"run": "r", "gradients": 3, "evaluation": {"points": [1]}}])
    assert (
        "勾配ノルム" not in re.sub("<script.*?</script>", "", str(ours), flags=re.DOTALL).split("analysis-0")[-1][:2000]
    )


def test_the_picture_of_an_analysis_is_the_one_beside_it(tmp_path: Path) -> None:
    """A run folder from elsewhere can't name a file of the reader's to be put on the page."""
    (tmp_path / "secret").write_text("secret")
    arm = make_arm("masksub", 90.0, seeds=2)
    evidence = make_evidence(
        dataclasses.replace(
            arm, runs=tuple(dataclasses.replace(run, path=str(tmp_path / str(run.seed))) for run in arm.runs)
        )
    )
    for seed in (0, 1):
        (tmp_path / str(seed) / "analysis").mkdir(parents=True)
        told = {"run": "r", "picture": str(tmp_path / "secret")}
        (tmp_path / str(seed) / "analysis" / "update-000001.json").write_text(json.dumps(told))
    (tmp_path / "0" / "analysis" / "update-000001.png").write_bytes(b"picture")
    found = find_analyses(evidence)
    assert [each["picture"] for each in found] == [str(tmp_path / "0" / "analysis" / "update-000001.png"), None]
    page = str(write_report(evidence, analysis=found))
    assert page.count("data:image/png;base64," + base64.b64encode(b"picture").decode()) == 1
    assert base64.b64encode(b"secret").decode() not in page
