"""The oldest versions that pyproject.toml allows, as constraints for pip: ``python -m tests.lowest > FILE``.

``make test-lowest`` installs them in an environment of its own and runs the tests of the core and of the integrations.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

DEVELOPMENT = {"dev", "docs"}
"""Extras whose libraries work on masksub and are not used by it; they come as they are."""


def constraints(settings: dict) -> list[str]:
    """``name==version`` for each library with a lower bound.

    Raises:
        ValueError: a library with two lower bounds, or with none.
    """
    project = settings["project"]
    wanted = [*project["dependencies"]]
    for extra, libraries in project["optional-dependencies"].items():
        if extra not in DEVELOPMENT:
            wanted += libraries
    found: dict[str, str] = {}
    for each in wanted:
        name = re.match(r"[\w-]+", each)[0]
        if name == project["name"]:
            continue
        bound = re.search(r">=\s*([\w.]+)", each)
        if bound is None or found.get(name, bound[1]) != bound[1]:
            raise ValueError(f"pyproject.toml: {each}: each library has one lower bound, everywhere the same")
        found[name] = bound[1]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    print("\n".join(constraints(tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8")))))
