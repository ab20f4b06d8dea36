"""Images in class folders: on disk, or inside an archive."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image

from masksub.app.data.archives import TarArchive, ZipArchive, open_archive
from masksub.app.data.decode import ImageError, load_image
from masksub.app.errors import InputError

__all__ = ["ClassFolders"]

# timm's and torchvision's, and what else PIL reads as one image.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png"),
    *(".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".avif", ".gif", ".jp2"),
)
_LAYOUT = "what is accepted is one folder for each class with its images directly in it: {root}/CLASS/IMAGE"


class ClassFolders:
    """The images of ``ROOT/CLASS/IMAGE``, where ROOT is a folder or an archive.

    Inside an archive, folders that all images share above their class folders are passed over. Names that begin with
    "." or "__" and files without an image's extension are not looked at. Classes and images are in sorted order.
    """

    def __init__(self, path: str | Path, channels: int, key: str = "the path") -> None:
        """List the images; none is decoded.

        Args:
            path: folder or archive.
            channels: 1 for grey, 3 for RGB.
            key: what the path is called in messages, such as the recipe's key.

        Raises:
            InputError: nothing there, not an archive, or not laid out as class folders.
        """
        self.path = Path(path).expanduser()
        self.name = str(self.path)
        self.channels = channels
        self._archive: ZipArchive | TarArchive | None = None
        if not self.path.exists():
            parent = next(above for above in self.path.absolute().parents if above.exists())
            raise InputError(f"{key} = {path}: there is no such folder or archive (the nearest that exists: {parent})")
        if self.path.is_dir():
            names = _walk(self.path)
        else:
            self._archive = open_archive(self.path)
            names = _without_common_top(_visible(self._archive.names))
        by_class = _by_class(names, self.name)
        self.classes = sorted(by_class)
        self._files = [name for each in self.classes for name in sorted(by_class[each])]
        counts = torch.tensor([len(by_class[each]) for each in self.classes])
        self.labels = torch.repeat_interleave(torch.arange(len(self.classes)), counts)

    def __len__(self) -> int:
        return len(self._files)

    def where(self, index: int) -> str:
        """The file; for an archive, the member and the archive."""
        if self._archive is None:
            return str(self.path / self._files[index])
        return f"{self._files[index]} in {self.path}"

    def read(self, index: int) -> Image.Image:
        """Decode one image.

        Raises:
            ImageError: it can't be read or decoded.
        """
        if self._archive is None:
            return load_image(self.path / self._files[index], self.channels)
        try:
            content = self._archive.read(self._files[index])
        except OSError as error:
            raise ImageError(f"{self.where(index)} can't be read: {error.strerror or error}") from error
        return load_image(content, self.channels, self.where(index))


def _walk(root: Path) -> list[tuple[str, str]]:
    """(name, name) of what lies below a folder, folders with a trailing slash."""
    found: list[str] = []
    for folder, folders, files in os.walk(root, followlinks=True):
        inside = Path(folder).relative_to(root).parts
        prefix = "".join(part + "/" for part in inside)
        if len(inside) > 1:
            folders.clear()  # deep enough to see a mistake
        found += [f"{prefix}{name}/" for name in folders]
        found += [prefix + name for name in files]
    return [(name, name) for name in _visible(sorted(found))]


def _visible(names: Iterable[str]) -> list[str]:
    return [name for name in names if not any(part.startswith((".", "__")) for part in name.split("/"))]


def _without_common_top(names: list[str]) -> list[tuple[str, str]]:
    """(name below the shared top folders, full name); a class folder is never taken for a shared one."""
    images = [name.split("/")[:-1] for name in names if name.lower().endswith(EXTENSIONS)]
    top = 0
    while images and all(len(parts) > top + 1 and parts[top] == images[0][top] for parts in images):
        top += 1
    prefix = "".join(part + "/" for part in images[0][:top]) if images else ""
    return [(name[len(prefix) :], name) for name in names if name.startswith(prefix)]


def _by_class(names: list[tuple[str, str]], root: str) -> dict[str, list[str]]:
    """Full names of the images of each class.

    Raises:
        InputError: an image that is not directly in a class folder, an empty class folder, no class folder.
    """
    by_class: dict[str, list[str]] = {}
    layout = _LAYOUT.format(root=root)
    for name, full in names:
        folder, _, file = name.partition("/")
        if name.endswith("/"):
            by_class.setdefault(folder, [])
        elif name.lower().endswith(EXTENSIONS):
            if not file:
                raise InputError(f"{full} in {root} is in no class folder; {layout}")
            if "/" in file:
                raise InputError(f"{full} in {root} lies deeper than a class folder; {layout}")
            by_class.setdefault(folder, []).append(full)
    if not by_class:
        raise InputError(f"{root} has no class folders with images ({', '.join(EXTENSIONS)}); {layout}")
    empty = sorted(each for each, images in by_class.items() if not images)
    if empty:
        raise InputError(
            f"class folder {', '.join(map(repr, empty))} of {root} has no images; put images "
            f"({', '.join(EXTENSIONS)}) in it or remove it"
        )
    return by_class
