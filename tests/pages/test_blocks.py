"""The tests of the pages notice what is wrong on a page. If these fail, a page may show what does not work."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.pages.blocks import ROOT, Block, find_blocks, prose
from tests.pages.commands import check_command, check_mention, masksub_commands
from tests.pages.runner import BlockError, Page, apply_diff, check, shell, unknown_names
from tests.pages.sandbox import RECIPE, Sandbox, small
from tests.pages.warm import STAND_INS

PAGE = """\
```python
first = 1
```
<!-- not run: needs eight GPUs -->

```python
raise RuntimeError
```
~~~sh
```python
~~~
- in a list:
  ```py title="second.py"
  second = first + 1
  ```
```text
what it prints
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    sandbox = Sandbox(tmp_path)
    monkeypatch.chdir(sandbox.work)
    return Page("docs/page.md", sandbox)


def first(text: str) -> Block:
    return find_blocks(text)[0]


def test_blocks_are_found_in_order_and_share_names(page: Page) -> None:
    blocks = find_blocks(PAGE)
    assert [(b.line, b.language, b.title, b.exempt) for b in blocks] == [
        (2, "python", None, None),
        (7, "python", None, "needs eight GPUs"),
        (10, "bash", None, None),
        (14, "python", "second.py", None),
    ]
    page.run(blocks[0])
    page.run(blocks[3])
    assert page.namespace["second"] == 2
    assert Path("second.py").read_text() == "second = first + 1\n"
    assert [number for number, _ in prose(PAGE)] == [4, 5, 12]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nx = 1\n", "line 1: this block is never closed"),
        ("<!-- not run: slow -->\nText.\n```python\n```\n", "line 1: marked as not run"),
        ("<!-- not run: slow -->\n```text\n```\n", "line 1: marked as not run"),
        ("<!-- not run: slow -->\n", "line 1: marked as not run"),
        ("<!-- not run -->\n```python\n```\n", "line 1: write <!-- not run: reason -->"),
        ("```\nmasksub demo\n```\n", "line 1: language ''"),
        ("```pyhton\n```\n", "line 1: language 'pyhton'"),
        ("Text:\n\n    masksub demo\n", "line 3: put commands in a block"),
    ],
)
def test_mistakes_on_a_page_are_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_blocks(text)


def test_failing_python_fails_at_its_line_of_the_page(page: Page) -> None:
    with pytest.raises(ZeroDivisionError) as error:
        page.run(first("Text.\n\n```python\nx = 1\nx / 0\n```\n"))
    last = error.traceback[-1]
    assert (str(last.path).endswith("page.md"), last.lineno + 1) == (True, 5)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("```bash\ntrue\nfalse\ntrue\n```\n", 3),
        ("```bash\ntrue\n\nfalse | cat\n```\n", 4),
        ("```bash\necho $unset\n```\n", 2),
        ("```console\n$ true\nfalse\n$ false\n```\n", 4),
        ("```yaml\nmethod: masksub\n\nsub: {raito: 0.5}\nmodel: {name: m}\ntrain: {epochs: 1}\n```\n", 4),
        ("```yaml\na: [1,\nb: ]]\n```\n", 3),
        ('```json\n{"a": 1,\n}\n```\n', 3),
        ("```toml\na = \n```\n", 2),
        ("```diff\n-x = 1\n+x =\n```\n", 3),
        ("```diff\n x = 1\n```\n", 2),
        ('```diff title="pyproject.toml"\n-no such line\n+x\n```\n', 2),
    ],
)
def test_what_fails_is_told_with_its_line_of_the_page(page: Page, text: str, line: int) -> None:
    with pytest.raises(BlockError, match=rf"docs/page\.md:{line}: ") as error:
        page.run(first(text))
    assert error.value.line == line


@pytest.mark.parametrize(
    "text",
    [
        "```bash\ntest -d images/train && cat recipe.yaml RECIPE image.png > copy  # with a comment\n```\n",
        "```console\n$ cat \\\n> recipe.yaml\nanything\n```\n",
        "```yaml\nsub: {ratio: 0.5}\n```\n",  # a part of a recipe
        "```yaml\ncompute_environment: LOCAL_MACHINE\n```\n",  # somebody else's
        '```json\n{"epoch": 1}\n{"epoch": 2}\n```\n',
        "```diff\n-from timm.task import ClassificationTask\n+from masksub import MaskSub\n x = 1\n```\n",
    ],
)
def test_what_is_right_passes(page: Page, text: str) -> None:
    page.run(first(text))


def test_an_import_that_a_diff_adds_must_be_there(page: Page) -> None:
    with pytest.raises(ImportError):
        page.run(first("```diff\n-x = 1\n+from masksub import MaskSubb\n```\n"))


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("step = masksub.TwoBranchStep(model, sub=masksub.MaskSub(0.5))", set()),
        ("step = masksub.TwoBranchStepp(modell, sub=masksub.MaskSub(0.5))", {"TwoBranchStepp", "modell"}),
        ("accelerator.registr_for_checkpointing(step)", {"registr_for_checkpointing", "step"}),
        ("accelerator.register_for_checkpointing(model)", set()),
    ],
)
def test_names_that_a_diff_adds_are_looked_up(line: str, unknown: set[str]) -> None:
    diff = f"+import masksub\n model = build()\n+{line}\n"
    assert unknown_names(diff, {"accelerator", "register_for_checkpointing"}) == unknown


def test_a_diff_changes_each_of_its_parts_once() -> None:
    text = "a\nb\nc\nd\n"
    assert apply_diff(" a\n+x\n b\n@@\n-d\n+e\n", text) == "a\nx\nb\nc\ne\n"
    with pytest.raises(ValueError, match="0 times"):
        apply_diff(" a\n+x\n c\n", text)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train digits/vit_micro optim.lrr=1", "did you mean optim.lr"),
        ("train digits/vit_nano", "no packaged recipe"),
        ("train recipe.yaml sub.ratio=2", "below 1"),
        ("train", "[Mm]issing (argument|parameter)"),
        ("train recipe.yaml --epochs 3", "No such option"),
        ("trian recipe.yaml", "no command trian"),
        ("compare recipe.yaml --arms plain,mask", "mask"),
        ("sweep recipe.yaml --space optim.lrr=1,2", "lrr"),
        ("inspect vit_smal_patch16_224", "no model vit_smal"),
        ("--colour", "no option --colour"),
    ],
)
def test_a_command_that_would_be_refused_is_found(command: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_command(command.split())


def test_commands_are_found_in_a_script() -> None:
    script = """\
masksub train recipe.yaml a=1 \\
    b='x y'  # masksub nothing
echo masksub; OMP_NUM_THREADS=1 masksub report runs > report.md && python -m masksub demo
torchrun --nproc-per-node 8 --module masksub train RECIPE --resume &
"""
    assert [*masksub_commands(script)] == [
        (0, ["train", "recipe.yaml", "a=1", "b=x y"]),
        (2, ["report", "runs"]),
        (2, ["demo"]),
        (3, ["train", "RECIPE", "--resume"]),
    ]
    for command in (
        "train RECIPE data.train=PATH ... --resume",
        "report runs -o r.html",
        "--version",
        "train --help",
    ):
        check_command(command.split())


def test_blocks_that_are_not_run_are_checked_still() -> None:
    text = "<!-- not run: needs eight GPUs -->\n```bash\ntrue\ntorchrun -m masksub train deit3/vit_bsae_400\n```\n"
    with pytest.raises(BlockError, match=r"page\.md:4: masksub train deit3/vit_bsae_400"):
        check("page.md", first(text))
    with pytest.raises(BlockError, match=r"page\.md:3: not Python"):
        check("page.md", first("<!-- not run: names a class that does not exist -->\n```python\nx = (\n```\n"))


def test_options_in_sentences_are_checked() -> None:
    check_mention(["compare", "--dry-run"])
    with pytest.raises(ValueError, match="no option --dry"):
        check_mention(["compare", "--dry"])


def test_of_a_console_only_what_follows_the_prompt_is_run() -> None:
    block = first("```console\n$ one \\\n  two\noutput\n$ three\n```\n")
    assert shell(block) == "one \\\n  two\n\nthree\n"


def test_recipes_of_pages_are_made_small_and_stay_valid(tmp_path: Path) -> None:
    from masksub.app.recipe import load_recipe, packaged_recipes

    for text in (RECIPE, packaged_recipes()["own/vit_small_finetune"].read_text(encoding="utf-8")):
        (tmp_path / "r.yaml").write_text(small(text))
        recipe = load_recipe(tmp_path / "r.yaml")
        assert (recipe.train.epochs, recipe.train.device, recipe.model.kwargs["depth"]) == (1, "cpu", 1)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("pip install 'masksub[timm]' 'timm>=1.0.23'", "pip install 'masksub[tim]'"),
        ("make test PYTHON=python3.12", "make tset"),
        ("torchrun --nproc-per-node 8 -m masksub train RECIPE", "torchrun --nproc-per-node 8 -m masksub trian RECIPE"),
        ("torchrun pyproject.toml", "torchrun --nprocs 8 pyproject.toml"),
        ("accelerate launch --multi_gpu pyproject.toml", "accelerate launch train.py"),
    ],
)
def test_what_is_not_carried_out_is_checked(right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(right)
    assert STAND_INS[name](arguments) == 0
    name, *arguments = shlex.split(wrong)
    with pytest.raises((SystemExit, ValueError)):
        STAND_INS[name](arguments)


def test_warnings_are_errors_where_the_page_gives_cause_to_them(page: Page) -> None:
    with pytest.raises(UserWarning, match="of the page"):
        page.run(first("```python\nimport warnings\nwarnings.warn('of the page')\n```\n"))
    elsewhere = "warnings.warn_explicit('of a library', UserWarning, 'loader.py', 1, module='torch.loader')"
    page.run(first(f"```python\nimport warnings\n{elsewhere}\n```\n"))
