"""Where the packaged recipes are. It imports nothing heavy: lists and completion read it at once."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FOLDER", "packaged_recipes"]

FOLDER = Path(__file__).resolve().parents[1] / "recipes"


def packaged_recipes() -> dict[str, Path]:
    """The recipes of this package: "digits/vit_micro" and so on, with the file of each."""
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}
