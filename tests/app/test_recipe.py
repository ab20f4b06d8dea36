"""Recipes: what is read, how every mistake is told, and the packaged ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from masksub.app.errors import InputError
from masksub.app.recipe import dump_recipe, load_recipe, packaged_recipes, recipe_schema
from masksub.app.recipe_hints import accepted, schema
from masksub.app.settings import Recipe

Load = Callable[..., Recipe]
SMALL = "data: {name: digits}\nmodel: {name: m}\ntrain: {epochs: 1}\n"  # three lines, nothing wrong


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a text as recipe.yaml of the working directory."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str) -> Recipe:
        Path("recipe.yaml").write_text(text, encoding="utf-8")
        return load_recipe("recipe.yaml", overrides)

    return load


def mistakes(load: Load, text: str, *overrides: str) -> list[str]:
    """The lines of the message, without the count above several."""
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    lines = str(caught.value).splitlines()
    if len(lines) > 1:
        assert lines.pop(0) == f"{len(lines)} mistakes in the recipe:"
    return lines


# ---- every single mistake: one line, with place, value and what is accepted

REFUSED = "is refused: a recipe holds only text, numbers, true, false, null, lists and mappings"
RATIO = "must be a number, at least 0 and below 1, or a mapping with kind: constant, cosine, linear or staged"


@pytest.mark.parametrize(
    "line, expected",
    [
        # unknown keys
        ("optim: {lrr: 1e-3}", "optim.lrr: no such key; did you mean optim.lr?"),
        ("model: {nmae: m}", "model.nmae: no such key; did you mean model.name?"),  # and not: model.name is missing
        ("train_: 1", "train_: no such key; did you mean train?"),
        ("optim: {mode: split}", "optim.mode: no such key; did you mean sub.mode (section sub)?"),
        ("epochs: 3", "epochs: no such key; did you mean train.epochs (section train)?"),
        ("sub: {weights: 0.5}", "sub.weights: no such key; did you mean sub.weight or model.weights (section model)?"),
        ("mask_ratio: 0.5", "mask_ratio: no such key; did you mean sub.ratio (section sub)?"),
        ("optim: {seed: 1}", "optim.seed: no such key; did you mean seed (the top level)?"),
        ("loss: {zzz: 1}", "loss.zzz: no such key; the keys of section loss are name, smoothing, target_threshold"),
        (
            "zzz: 1",
            "zzz: no such key; "
            "the keys of the top level are method, seed, data, augment, model, sub, loss, optim, train",
        ),
        (
            "sub: {ratio: {kind: linear, start: 0, end: 0.5, stop: 1}}",
            "sub.ratio.stop: no such key; the keys of section sub.ratio are kind, start, end",
        ),
        # types: strict, so that no value is quietly turned into another
        ("seed: 1.0", "seed = 1.0: must be a whole number, at least 0 and below 2147483648"),
        ('seed: "1"', 'seed = "1": must be a whole number, at least 0 and below 2147483648'),
        ("seed: true", "seed = true: must be a whole number, at least 0 and below 2147483648"),
        ("sub: {weight: true}", f"sub.weight = true: {RATIO.replace('below', 'at most')}"),
        ("train: {epochs: 1, compile: 1}", "train.compile = 1: must be true or false"),
        ("model: {name: 3}", "model.name = 3: must be text"),
        ("model: {name: m, kwargs: 3}", "model.kwargs = 3: must be a mapping of keys to values"),
        ("model: {name: m, weights: 3}", "model.weights = 3: must be text, or null"),
        ("optim: 3", "optim = 3: must be a section of keys and values"),
        ("train: 3", "train = 3: must be a section of keys and values, at least epochs"),
        (
            "method: null",
            "method = null: must be plain, masksub, direct-mask, true-label-sub, self-distill, dropsub, "
            "pathsub or cosub",
        ),
        ("augment: {flip: [0.5]}", "augment.flip = [0.5]: must be a number, at least 0 and at most 1"),
        # ranges, of every kind of bound
        ("sub: {ratio: 1.0}", f"sub.ratio = 1.0: {RATIO}"),
        ("sub: {ratio: half}", f'sub.ratio = "half": {RATIO}'),
        ("sub: {ratio: [0.5]}", f"sub.ratio = [0.5]: {RATIO}"),
        ("sub: {unit: 0}", "sub.unit = 0: must be a whole number, at least 1, or null"),
        ("optim: {lr: 0}", "optim.lr = 0: must be a number, above 0"),
        ("train: {epochs: 1, ema_decay: 1}", "train.ema_decay = 1: must be a number, above 0 and below 1, or null"),
        # choices
        (
            "loss: {name: bcee}",
            'loss.name = "bcee": must be ce or bce; did you mean bce?',
        ),
        ("data: {name: digits, channels: 2}", "data.channels = 2: must be 1 or 3"),
        # lists
        (
            "augment: {crop_scale: [0.1]}",
            "augment.crop_scale = [0.1]: must be a list of 2, each a number, at least 0 and at most 1",
        ),
        (
            "augment: {crop_scale: [1, 1, 1]}",
            "augment.crop_scale = [1, 1, 1]: must be a list of 2, each a number, at least 0 and at most 1",
        ),
        ("augment: {crop_scale: [0.1, 2]}", "augment.crop_scale[1] = 2: must be a number, at least 0 and at most 1"),
        ("data: {name: digits, mean: 0.5}", "data.mean = 0.5: must be a list, each a number, or null"),
        ("data: {name: digits, mean: [a, 0, 0]}", 'data.mean[0] = "a": must be a number'),
        # schedules: the branch that was meant, and no other
        (
            "sub: {ratio: {kind: lin}}",
            'sub.ratio.kind = "lin": must be constant, cosine, linear or staged; did you mean linear?',
        ),
        ("sub: {ratio: {kind: null}}", "sub.ratio.kind = null: must be constant, cosine, linear or staged"),
        ("sub: {ratio: {start: 0}}", "sub.ratio.kind is missing: must be constant, cosine, linear or staged"),
        ("sub: {ratio: {kind: linear, start: 0}}", "sub.ratio.end is missing: must be a number"),
        ("sub: {ratio: {kind: linear, start: 0, end: x}}", 'sub.ratio.end = "x": must be a number'),
        (
            "sub: {ratio: {kind: cosine, start: 0, end: 1}}",
            "sub.ratio runs from 0.0 to 1.0: it must satisfy 0 <= ratio < 1 all along",
        ),
        (
            "sub: {weight: {kind: staged, stages: [[0.5, 1]]}}",
            "sub.weight.stages begin at [0.5]: the first must begin at 0, each later than the one before, all before 1",
        ),
        # rules about several values
        (
            "data: {name: folder, val: x}",
            'data.train is missing: data.name "folder" needs a folder or archive to train on',
        ),
        ("data: {name: digits, mean: [0.5]}", "data.mean = [0.5]: data.channels = 3 needs as many numbers"),
        ("data: {name: digits, std: [1, 0, 1]}", "data.std = [1.0, 0.0, 1.0]: each must be above 0"),
        # values that YAML alone would let through
        ("sub: {ratio: .nan}", "sub.ratio: .nan must be a finite number"),
        ("model: {name: m, kwargs: {a: -.inf}}", "model.kwargs.a: -.inf must be a finite number"),
        ("optim: {lr: 1e999}", "optim.lr: 1e999 must be a finite number"),
        ("seed: " + "9" * 5000, "seed: 99999999999999999999... has too many digits"),
        ("model: {name: m, 3: x}", "3 can't be a key: keys are text"),
        ("model: {name: m, [a]: x}", "a list or mapping can't be a key: keys are text"),
        ("sub: {<<: 3}", "<< must have a mapping, or a list of mappings"),
        (
            r'model: {name: "\ud800"}',
            "model.name: holds half a character: a surrogate without its other half",
        ),
    ],
)
def test_one_mistake(load: Load, line: str, expected: str) -> None:
    section = line.partition(":")[0]
    kept = [other for other in SMALL.splitlines() if not other.startswith(f"{section}:")]
    lines = [*kept, line]
    assert mistakes(load, "\n".join(lines)) == [f"recipe.yaml:{len(lines)}: {expected}"]


@pytest.mark.parametrize(
    "item, expected",
    [
        ("optim.lrr=1e-3", "no such key; did you mean optim.lr?"),
        ("sub.ratio=1.0", RATIO),
        (
            "sub.ratio={kind: lin}",
            'sub.ratio.kind = "lin": must be constant, cosine, linear or staged; did you mean linear?',
        ),
        ("train={batch_size: 4}", "train.epochs is missing: must be a number, above 0"),
        ("train.compile=yes", 'yes has two readings: write true or false, or "yes" in quotes for the text'),
        ("train.epochs=", "must be a number, above 0"),
        (
            "model.kwargs.a=!!python/name:os.system ''",
            f"!!python/name:os.system {REFUSED}",
        ),
        ("data.mean=[0.5", "not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("data.name.x=3", 'data.name is "digits", which has no keys; set it whole'),
        ("optim.lr", "must be key=value, such as optim.lr=1e-3"),
        ("=3", "must be key=value, such as optim.lr=1e-3"),
        ("optim..lr=3", "must be key=value, such as optim.lr=1e-3"),
        ("data.std=[1]", "data.std = [1.0]: data.channels = 3 needs as many numbers"),
    ],
)
def test_one_mistake_of_the_command_line(load: Load, item: str, expected: str) -> None:
    assert mistakes(load, SMALL, item) == [f"command line: {item}: {expected}"]


# ---- all mistakes at once

FIVE = """\
method: masksub
data:
  name: folder
  trian: photos/train
  val: photos/val
model:
  name: vit_tiny_patch16_224
sub:
  ratio: 1.0
optim:
  lrr: 1e-3
augment:
  mixup: 0.2
train:
  batch_size: 33
"""


def test_all_mistakes_come_in_one_message_in_the_order_of_the_lines(load: Load) -> None:
    # data.trian alone is told, not also that data.train is missing; the rule on mixup and the batch is checked although
    # other values of its sections are wrong.
    assert mistakes(load, FIVE, "seed=-1", "optim.clip=1") == [
        "recipe.yaml:4: data.trian: no such key; did you mean data.train?",
        f"recipe.yaml:9: sub.ratio = 1.0: {RATIO}",
        "recipe.yaml:11: optim.lrr: no such key; did you mean optim.lr?",
        "recipe.yaml:14: train.epochs is missing: must be a number, above 0",
        "recipe.yaml:15: train.batch_size = 33: mixup and cutmix need an even number",
        "command line: seed=-1: must be a whole number, at least 0 and below 2147483648",
        "command line: optim.clip=1: no such key; did you mean optim.clip_norm?",
    ]


def test_several_rules_are_told_each_at_its_own_line(load: Load) -> None:
    lines = mistakes(
        load,
        "data:\n  mean: [1]\n  std: [0, 1, 1]\nmodel: {name: m}\nsub:\n  ratio: {kind: constant, value: 2}\n"
        "  weight: {kind: constant, value: 2}\ntrain: {epochs: 1}\n",
    )
    assert [line.split(" is ")[0].split(" = ")[0].split(" runs ")[0] for line in lines] == [
        "recipe.yaml:1: data.train",
        "recipe.yaml:1: data.val",
        "recipe.yaml:2: data.mean",
        "recipe.yaml:3: data.std",
        "recipe.yaml:6: sub.ratio",
        "recipe.yaml:7: sub.weight",
    ]


def test_a_rule_is_not_told_when_a_value_that_it_reads_is_wrong_itself(load: Load) -> None:
    # with the default of 3 channels the mean would be one number short
    text = "data: {name: digits, channels: one, mean: [0.5]}\nmodel: {name: m}\ntrain: {epochs: 1}\n"
    assert mistakes(load, text) == ['recipe.yaml:1: data.channels = "one": must be 1 or 3']


def test_missing_sections_and_keys_are_told_with_the_line_of_what_is_there(load: Load) -> None:
    assert mistakes(load, "# nothing else\nmodel:\n  kwargs: {}\ndata: {name: digits}\n") == [
        "recipe.yaml: train is missing: must be a section of keys and values, at least epochs",
        "recipe.yaml:2: model.name is missing: must be text",
    ]


def test_a_misspelt_key_beside_the_right_one_hides_nothing(load: Load) -> None:
    assert len(mistakes(load, SMALL + "optim: {lr: fast, lrr: 3}")) == 2


def test_long_values_are_cut(load: Load) -> None:
    (line,) = mistakes(load, SMALL + f"seed: {'x' * 500}")
    assert len(line) < 160 and "xxx...: must be" in line


# ---- YAML


def test_duplicate_keys_are_named_with_both_lines(load: Load) -> None:
    text = SMALL + "optim:\n  lr: 1\n  name: adamw\n  lr: 2\nsub: {}\nsub: {}\n"
    assert mistakes(load, text) == [
        "recipe.yaml:7: optim.lr is given twice, in lines 5 and 7",
        "recipe.yaml:9: sub is given twice, in lines 8 and 9",
    ]


def test_merging_twice_is_a_duplicate_too(load: Load) -> None:
    text = SMALL + "optim:\n  kwargs:\n    <<: {a: 1}\n    <<: {a: 2}\n"
    assert mistakes(load, text) == ["recipe.yaml:7: optim.kwargs.<< is given twice, in lines 6 and 7"]


def test_object_tags_are_refused_and_nothing_is_executed(load: Load, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    text = (
        SMALL
        + f"seed: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{trace}]]\n"
        + "sub: !mine {ratio: 0.5}\noptim: {lr: !!binary aGk=}\n"
    )
    assert mistakes(load, text) == [
        f"recipe.yaml:4: seed: !!python/object/apply:pathlib.Path.touch {REFUSED}",
        f"recipe.yaml:5: sub: !mine {REFUSED}",
        f"recipe.yaml:6: optim.lr: !!binary {REFUSED}",
    ]
    assert not trace.exists()


@pytest.mark.parametrize(
    "text, place, problem",
    [
        ("data: {name: digits\nmodel: x\n", "2:6", "expected ',' or '}', but got ':'"),
        ("train:\n\tepochs: 1\n", "2:1", "found character '\\t' that cannot start any token"),
        ("model: *nowhere\n", "1:8", "found undefined alias"),
        ("a: 1\n---\nb: 2\n", "2:1", "but found another document"),
        ("a: \x07\n", None, "special characters are not allowed"),
        ("a: " + "[" * 5000, None, "nested too deeply"),
        (r'a: "\U00110000"', None, "chr() arg not in range(0x110000)"),
    ],
)
def test_what_is_no_yaml_is_told_with_line_and_column(load: Load, text: str, place: str | None, problem: str) -> None:
    (line,) = mistakes(load, text)
    assert re.fullmatch(rf"recipe\.yaml{f':{place}' if place else ''}: not valid YAML: .*{re.escape(problem)}.*", line)


@pytest.mark.parametrize(
    "text, what",
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("null\n", "is empty"),
        ("- a\n", "is not a mapping"),
        ("3", "is not a mapping"),
    ],
)
def test_an_empty_file_or_no_mapping(load: Load, text: str, what: str) -> None:
    assert mistakes(load, text) == [
        f"recipe.yaml: the recipe {what}: it needs sections of keys and values, at least model: and train:"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &a [*a, *a]",
        "a: &a {b: *a}",
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 19)),
    ],
)
def test_anchors_that_expand_without_end_are_stopped(load: Load, text: str) -> None:
    assert "nested too deeply or too long for a recipe" in mistakes(load, SMALL + text)[0]


@pytest.mark.parametrize(
    "written, value",
    [
        ("1e-3", 0.001),
        ("1E+2", 100.0),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("50_000", 50000),
        ("1_000.5", 1000.5),
        ("010", 10),  # octal in YAML 1.1
        ("-3", -3),
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("2024-01-02", "2024-01-02"),  # a date in YAML 1.1
        ("0x1F", "0x1F"),
        ("1.2.3", "1.2.3"),
        ("_1", "_1"),
        ("true", True),
        ("False", False),
        ("y", "y"),
        ("nan", "nan"),
        ("~", None),
        ("", None),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ('"1e-3"', "1e-3"),
        ("'off'", "off"),
        ("[1, x]", [1, "x"]),
        ("äöü", "äöü"),
    ],
)
def test_what_a_scalar_is_and_that_it_survives_being_written(load: Load, written: str, value: object) -> None:
    # kwargs, since any type is valid there
    recipe = load(SMALL.replace("{name: m}", f"\n  name: m\n  kwargs:\n    k: {written}"))
    assert recipe.model.kwargs == {"k": value}
    assert type(recipe.model.kwargs["k"]) is type(value)
    again = load(dump_recipe(recipe))
    assert again == recipe
    assert type(again.model.kwargs["k"]) is type(value)


@pytest.mark.parametrize("word", ["yes", "No", "ON", "off"])
def test_yes_no_on_off_are_refused_unless_quoted(load: Load, word: str) -> None:
    # kwargs: a "no" that is quietly text would count as true in the model
    (line,) = mistakes(load, SMALL + f"optim: {{kwargs: {{nesterov: {word}}}}}")
    assert line == (
        f"recipe.yaml:4: optim.kwargs.nesterov: {word} has two readings: write true or false, "
        f'or "{word}" in quotes for the text'
    )


def test_anchors_and_merge_keys(load: Load) -> None:
    recipe = load(
        "data: {name: digits}\ntrain: {epochs: 1}\n"
        "model:\n  name: m\n  kwargs: &base {depth: 4, width: 96}\n"
        "optim:\n  kwargs: {<<: [{depth: 1}, *base], width: 2}\n"
        "sub:\n  ratio: &r {kind: linear, start: 0, end: 0.5}\n  weight: {<<: *r, end: 1}\n"
    )
    assert recipe.optim.kwargs == {"depth": 1, "width": 2}  # the first of the list, then the mapping's own
    assert recipe.sub.weight_schedule(1.0) == 1.0
    assert recipe.sub.ratio_schedule(1.0) == 0.5


def test_a_mistake_in_merged_values_is_told_where_they_are_written(load: Load) -> None:
    text = SMALL + "sub:\n  ratio: &r\n    kind: linear\n    start: 0\n    end: x\n  weight: {<<: *r, start: y}\n"
    assert [line.split(" = ")[0] for line in mistakes(load, text)] == [
        "recipe.yaml:8: sub.ratio.end",
        "recipe.yaml:8: sub.weight.end",
        "recipe.yaml:9: sub.weight.start",
    ]


def test_a_section_with_all_keys_commented_out_has_its_defaults(load: Load) -> None:
    assert load(SMALL + "sub:\n  # ratio: 0.6\n").sub == load(SMALL).sub


def test_byte_order_mark_and_windows_line_ends(load: Load) -> None:
    assert load("\ufeff" + SMALL.replace("\n", "\r\n")) == load(SMALL)


# ---- the command line


def test_overrides_replace_add_and_the_last_one_counts(load: Load) -> None:
    recipe = load(
        SMALL.replace("{name: m}", "{name: m, kwargs: {depth: 4}}"),
        "optim.lr=1e-2",
        "optim.lr=1e-3",
        "sub.ratio={kind: linear, start: 0.2, end: 0.6}",
        "sub.ratio.end=0.7",
        "model.kwargs.width=96",
        "data.train_images=",
        "loss.name='bce'",
        "optim.kwargs={betas: [0.9, 0.95]}",
    )
    assert recipe.optim.lr == 1e-3
    assert recipe.sub.ratio_schedule.bounds == (0.2, 0.7)
    assert recipe.model.kwargs == {"depth": 4, "width": 96}
    assert recipe.data.train_images is None
    assert recipe.loss.name == "bce"
    assert recipe.optim.kwargs == {"betas": [0.9, 0.95]}


def test_overrides_can_supply_what_the_file_lacks_and_mend_what_is_wrong(load: Load) -> None:
    text = "data: {name: digits}\nmodel:\nsub: {ratio: 7}\n"
    recipe = load(text, "model.name=a=b", "train.epochs=0.5", "sub.ratio=0")
    assert recipe.model.name == "a=b"
    assert recipe.train.epochs == 0.5
    assert recipe.sub.ratio_schedule(0.0) == 0.0


def test_a_value_that_replaces_an_unreadable_one_is_checked(load: Load) -> None:
    assert [line.split(": ")[0] for line in mistakes(load, SMALL + "seed: yes", "seed=-1")] == [
        "recipe.yaml:4",
        "command line",
    ]


# ---- finding


def test_packaged_recipes_by_name() -> None:
    assert load_recipe("digits/vit_micro") == load_recipe("digits/vit_micro.yaml")
    assert load_recipe("digits/vit_micro") == load_recipe(packaged_recipes()["digits/vit_micro"])


def test_a_file_comes_before_a_packaged_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    Path("digits/vit_micro.yaml").write_text(SMALL, encoding="utf-8")
    assert load_recipe("digits/vit_micro.yaml").model.name == "m"


def test_an_unknown_name_says_where_was_looked_and_what_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_recipe("digits/vit_mikro")
    message = str(caught.value)
    assert "no recipe 'digits/vit_mikro'" in message
    assert f"{tmp_path / 'digits/vit_mikro'} is no file" in message
    assert str(packaged_recipes()["digits/vit_micro"].parents[1]) in message
    assert "nearest: digits/vit_micro" in message
    assert len(message.split("nearest: ")[1].split(", ")) <= 3 and "`masksub recipes` lists them" in message
    with pytest.raises(InputError, match=r"none of that name; `masksub recipes` lists them$"):
        load_recipe("qqq")
    with pytest.raises(InputError, match="is a folder"):
        load_recipe(tmp_path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(InputError, match=r"r\.yaml: can't be read: 'utf-8'"):
        load_recipe(tmp_path / "r.yaml")


OWN_FAMILIES = ("digits", "cifar10", "own")
"""The paper's own families are tested in test_paper_recipes."""


def test_every_packaged_recipe_loads_and_says_what_it_is_for() -> None:
    assert {"digits/vit_micro", "cifar10/vit_tiny", "cifar10/vit_tiny_patch8"} <= set(packaged_recipes())
    for name, path in packaged_recipes().items():
        load_recipe(name)
        header = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
        assert header, name
        assert re.search(rf"^# Run: +(torchrun \S.* )?masksub (train|compare) {name}( |$)", header[0], re.MULTILINE), (
            name
        )
        for word in ("Hardware", "Paper", "Measured", "We differ"):
            assert re.search(rf"^# {word}: +\S", header[0], re.MULTILINE), (name, word)


@pytest.mark.parametrize("name", [name for name in packaged_recipes() if name.split("/")[0] in OWN_FAMILIES])
def test_every_recipe_of_our_own_makes_a_model(name: str) -> None:
    timm = pytest.importorskip("timm")
    recipe = load_recipe(name)
    data = recipe.data
    model = timm.create_model(
        recipe.model.name, img_size=data.image_size, in_chans=data.channels, num_classes=10, **recipe.model.kwargs
    )
    assert model.patch_embed.num_patches == (data.image_size // recipe.model.kwargs.get("patch_size", 16)) ** 2


# ---- writing


@pytest.mark.parametrize("name", packaged_recipes())
def test_what_is_written_has_every_value_in_order_and_loads_as_equal(load: Load, name: str) -> None:
    recipe = load_recipe(name)
    text = dump_recipe(recipe)
    assert load(text) == recipe
    assert dump_recipe(load(text)) == text
    keys = [line.split(":")[0] for line in text.splitlines() if re.match(r"\w", line)]
    assert keys == list(Recipe.model_fields)
    assert "  keep_checkpoints: 2\n" in text  # a value that no recipe names
    assert "&" not in text


def test_schedules_and_odd_text_survive_being_written(load: Load) -> None:
    recipe = load(
        SMALL
        + "sub: {ratio: {kind: staged, stages: [[0, 0.1], [0.5, 0.2]]}, weight: {kind: cosine, start: 1, end: 1e-7}}",
        r'data.train="yes: #1 \n\t 1e-3 \u2028 \ud83d\ude00"',
        "data.val='off'",
        "data.root='3'",
        "model.kwargs={'on': 1, '1e3': 1, '<<': 1, 'null': {}}",
    )
    assert load(dump_recipe(recipe)) == recipe


def test_schema_describes_every_key_and_is_json() -> None:
    found = recipe_schema()
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert found["title"] == "masksub recipe"
    assert found["required"] == ["model", "train"]
    json.dumps(found)
    for section in ("Data", "Augment", "Model", "Sub", "Loss", "Optim", "Train"):
        for key, field in found["$defs"][section]["properties"].items():
            assert field.get("description"), f"{section}.{key} has no docstring"
    found.clear()
    assert recipe_schema()  # a copy each time


def test_what_is_accepted_can_be_said_for_every_key() -> None:
    sections = [schema(), *schema()["$defs"].values()]
    for section in sections:
        for key, field in section["properties"].items():
            assert accepted(field), f"{section['title']}.{key}: a new type needs its words in recipe_hints"
