"""Promises of the sources as a whole: what imports what, what ``import masksub`` costs, what no file contains."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import masksub

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "masksub"

# Imports go one way: a layer imports from itself and from those before it. The package's own __init__ offers core and
# adapters; __main__ starts cli.
LAYERS = ("core", "adapters", "integrations", "app", "cli")
PLACES = {**{name: rank for rank, name in enumerate(LAYERS)}, "": LAYERS.index("adapters"), "__main__": len(LAYERS)}
SIBLINGS_APART = ("adapters", "integrations")
CORE_IMPORTS = {"torch", "masksub", *sys.stdlib_module_names}


def modules() -> dict[str, Path]:
    """Each module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, module: str, is_package: bool, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import, also inside functions and under TYPE_CHECKING, relative ones resolved."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield node.lineno, name if name in known else base
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            yield from (
                (node.lineno, a.value) for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            )


def place(module: str) -> str:
    """The layer of a module of the package, "" for the package itself."""
    return ".".join(module.split(".")[1:2])


def complaint(module: str, target: str) -> str | None:
    """What is wrong with ``module`` importing ``target``, None if nothing."""
    here, there = place(module), place(target)
    if target.split(".")[0] != "masksub":
        outside = here == "core" and target.split(".")[0] not in CORE_IMPORTS
        return "core imports torch and the standard library only" if outside else None
    if there not in PLACES:
        return f"no layer is named {there!r}"
    if here == there and here in SIBLINGS_APART and module.count(".") > 1:
        return f"files of {here} don't import each other"
    # The package itself loads core and adapters, so that it can't be loaded by them.
    if PLACES[there] > PLACES[here] or (there == "" and here in ("core", "adapters")):
        return f"imports go one way: {' <- '.join(LAYERS)}"
    return None


def complaints(sources: dict[str, str], packages: set[str]) -> list[str]:
    """All breaches of the table in these modules."""
    found = []
    for module, source in sources.items():
        if place(module) not in PLACES:
            found.append(f"{module}: its place is not in the table of layers")
            continue
        for line, target in imported(source, module, module in packages, set(sources)):
            if wrong := complaint(module, target):
                found.append(f"{module}:{line} imports {target}: {wrong}")
    return found


def test_imports_go_one_way() -> None:
    """Else the method drags in what a user's own loop doesn't need, and parts can't be understood alone."""
    files = modules()
    layers = {place(module) for module in files}
    assert {"", "core", "adapters", "app"} <= layers, f"found {sorted(layers)} below {PACKAGE}"
    packages = {module for module, path in files.items() if path.name == "__init__.py"}
    sources = {module: path.read_text(encoding="utf-8") for module, path in files.items()}
    # Internal imports are resolved at all: the package's own __init__ imports core.
    assert any(place(target) == "core" for _, target in imported(sources["masksub"], "masksub", True, set(sources)))
    assert complaints(sources, packages) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("masksub.core.step", "import numpy as np", "standard library only"),
        ("masksub.core.step", "def f():\n    from timm.layers import Mlp", "standard library only"),
        ("masksub.core.step", "from ..app import train", "one way"),
        ("masksub.core.step", "from masksub import MaskSub", "one way"),
        ("masksub.core", "from ..adapters import FAMILIES", "one way"),
        ("masksub.core.step", "import importlib\nimportlib.import_module('masksub.app.train')", "one way"),
        ("masksub.adapters.pixels", "from . import timm_vit", "each other"),
        ("masksub.adapters.pixels", "from .timm_vit import TimmViT", "each other"),
        ("masksub.adapters.pixels", "from masksub import adapters", "each other"),
        ("masksub.adapters.pixels", "from ..integrations import lightning", "one way"),
        ("masksub.integrations.timm_task", "import masksub.app.train", "one way"),
        ("masksub.app.train", "from masksub import cli", "one way"),
        ("masksub.app.train", "from masksub.cli import main", "one way"),
        ("masksub.app.train", "from .. import __main__", "one way"),
        ("masksub", "from .app import train", "one way"),
        ("masksub.utils", "", "not in the table"),
        ("masksub.core.step", "import torch\nfrom . import masking\nfrom .masking import keep_count", None),
        ("masksub.adapters", "from .pixels import PixelBlocks", None),
        ("masksub.adapters.pixels", "from ..core.adapter import Grid\nimport timm", None),
        ("masksub.integrations.timm_task", "from masksub import MaskSub", None),
        ("masksub.app.train", "from . import errors\nfrom masksub.core import step\nimport numpy", None),
        ("masksub.cli", "from masksub.app import train", None),
        ("masksub.__main__", "from masksub.cli import main", None),
    ],
)
def test_the_import_table_is_read_as_it_is_written(module: str, source: str, wrong: str | None) -> None:
    files = {
        "masksub", "masksub.core", "masksub.core.masking", "masksub.core.step", "masksub.adapters",
        "masksub.adapters.pixels", "masksub.adapters.timm_vit", "masksub.integrations", "masksub.app",
        "masksub.app.errors", "masksub.app.train", "masksub.cli", "masksub.__main__",
    }  # fmt: skip
    sources = {**dict.fromkeys(files, ""), module: source}
    found = complaints(sources, {"masksub", "masksub.core", "masksub.adapters", "masksub.integrations", "masksub.app"})
    if wrong is None:
        assert found == []
    else:
        assert len(found) == 1 and wrong in found[0], found


# Notes each library that anything tries to import, so that those not installed here count too.
WATCH = """
import json, sys
wanted = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        wanted.append(name)
sys.meta_path.insert(0, Watch())
{code}
print(json.dumps(sorted({{*wanted, *sys.modules}})))
"""


def fresh(code: str) -> str:
    """What this prints in a process of its own."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(code: str) -> set[str]:
    return set(json.loads(fresh(WATCH.format(code=code))))


OPTIONAL = {
    "accelerate", "datasets", "lightning", "matplotlib", "optuna", "plotly", "pydantic", "pytorch_lightning",
    "sklearn", "tensorboard", "timm", "torchvision", "transformers", "typer",
}  # fmt: skip


def test_importing_masksub_loads_no_optional_library() -> None:
    """Else a user's script waits for libraries it doesn't use, or fails where they are not installed."""
    loaded = loaded_by("import masksub; masksub.MaskSub")
    assert {"masksub.core.step", "torch"} <= loaded
    own = {"masksub.app", "masksub.cli", "masksub.integrations"}
    assert sorted(loaded & (OPTIONAL | own)) == []


def test_importing_masksub_alone_does_not_load_torch() -> None:
    """Else ``masksub --help`` and each TAB take seconds."""
    loaded = loaded_by("import masksub; masksub.__version__; dir(masksub)")
    assert "masksub" in loaded
    assert sorted(loaded & ({"torch", "numpy", "masksub.core", "masksub.adapters"} | OPTIONAL)) == []


def test_what_type_checkers_see_is_what_is_there() -> None:
    """Else a name is known to the editor and missing at run time, or the other way round."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("masksub")
        for alias in node.names
    }
    answered = {name: f"{place}.{name}" for name, place in masksub._PLACES.items()} | masksub._MODULES
    assert len(seen) > 15 and seen == answered
    assert set(masksub.__all__) == {*masksub._PLACES, "schedule", "__version__"}
    assert set(masksub.__all__) <= set(dir(masksub))


@pytest.mark.parametrize(
    "code",
    [
        "from masksub.core.branches import MaskSub; import masksub; assert masksub.MaskSub is MaskSub",
        "from masksub import *; MaskSub, schedule; import masksub; masksub.core.step, masksub.adapters.FAMILIES",
        "import pickle; pickle.loads({pickled!r})",
    ],
)
def test_the_adapters_are_there_whoever_comes_first(code: str) -> None:
    """Else a model that is supported "can't be masked", for one who imports a part of the core by itself."""
    code = f"import sys\n{code.format(pickled=pickle.dumps(masksub.MaskSub(0.5)))}\n"
    code += "from masksub.core.adapter import registered\nprint([type(each).__name__ for each in registered()])"
    expected = [type(each).__name__ for each in masksub.adapters.FAMILIES]
    assert ast.literal_eval(fresh(code)) == expected and len(expected) > 10


def test_what_else_adapters_know_is_there_too() -> None:
    """Else ``masksub train method=dropsub`` finds no dropout in models that have it."""
    code = """
from torch import nn
from masksub.core import dropouts, residual
dropouts.dropout_sites(nn.Identity()), residual.exits_of(nn.Identity())
print((len(dropouts._SITES), len(residual._EXITS)))
"""
    alone = """
from torch import nn
from masksub.core import residual
residual.exits_of(nn.Identity())
print(len(residual._EXITS))
"""
    sites, exits = ast.literal_eval(fresh(code))
    assert sites > 0 and exits > 5 and ast.literal_eval(fresh(alone)) == exits


def test_a_misspelt_name_is_an_attribute_error() -> None:
    """Else ``hasattr`` and ``from masksub import ...`` break for every name that is not there."""
    assert not hasattr(masksub, "MaskSubb")
    with pytest.raises(AttributeError, match="'masksub' has no attribute 'MaskSubb'"):
        _ = masksub.MaskSubb  # type: ignore[attr-defined]


def test_everything_public_is_there_and_has_a_docstring() -> None:
    """Else ``help()`` and the reference are empty. A dataclass without one gets its signature, which doesn't count."""
    public = {name: getattr(masksub, name) for name in masksub.__all__}
    described = {n: v for n, v in public.items() if inspect.isclass(v) or inspect.isroutine(v) or inspect.ismodule(v)}
    assert {"MaskSub", "TwoBranchStep", "relaxed_target", "schedule"} <= described.keys()
    for name, value in described.items():
        text = (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or ""
        assert text.strip() and not text.startswith(f"{name}("), f"masksub.{name} has no docstring"


# Put together from parts, so that this file names none of them.
HOSTS = (
    ("py" + "pi", "org"),
    ("python" + "hosted", "org"),
    ("download", "py" + "torch", "org"),
    ("ana" + "conda", "org"),
)
REGISTRY = re.compile("|".join(re.escape(".".join(parts)) for parts in HOSTS))
MACHINE = re.compile(r"(?<![\w.~*-])(/(home|Users|root|work|opt/wheels|tmp/dev)/|[A-Z]:\\+Users\\)")
FOLDERS = ("src", "tests", "benchmarks", "docs", "docs_build", "examples", ".ci")


def ours() -> list[Path]:
    """All files people read or run, but the licence, which is not ours."""
    files = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in (".md", ".toml", ".cff", ".yml")]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [*(path for path in files if "__pycache__" not in path.parts), ROOT / "Makefile"]


def test_no_file_names_a_registry_host_or_a_developers_folder() -> None:
    """Else an install ignores the user's mirror, or a command works on one machine only."""
    files = ours()
    assert {ROOT / "README.md", Path(__file__).resolve(), PACKAGE / "__init__.py"} <= set(files)
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        for pattern in (REGISTRY, MACHINE)
        if (match := pattern.search(path.read_bytes().decode(errors="ignore")))
    ]
    assert not found, "\n".join(found)


def test_the_patterns_find_what_they_look_for() -> None:
    """The samples are put together here, so that this file doesn't contain them."""
    for host in HOSTS:
        assert REGISTRY.search(f"--index-url https://files.{'.'.join(host)}/simple")
    assert not REGISTRY.search("https://example.org/simple")
    for folder in (("", "home", "me", "data"), ("", "Users", "me", ""), ("", "root", ".cache")):
        assert MACHINE.search(f'path = "{"/".join(folder)}"')
    assert MACHINE.search("\\".join(["C:", "Users", "me"]))
    for fine in ("https://example.org/home/page", "~/work/x", "runs/home/x", "homework/x", "$ROOT/root/x"):
        assert not MACHINE.search(fine), fine


def test_the_version_is_written_once() -> None:
    """Else ``pip``, ``masksub.__version__`` and run folders tell of different versions."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in settings["project"] and "version" in settings["project"]["dynamic"]
    assert ROOT / settings["tool"]["hatch"]["version"]["path"] == PACKAGE / "__init__.py"
    assigned = [
        name for name, path in modules().items() if re.search(r"(?m)^__version__\s*[:=]", path.read_text("utf-8"))
    ]
    assert assigned == ["masksub"]
    assert importlib.metadata.version("masksub") == masksub.__version__, (
        "the installed package is of another version; after a change of __version__: make clean test"
    )
