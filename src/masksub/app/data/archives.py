"""Files inside a .zip or .tar, listed once and read one at a time, without unpacking.

Nothing is ever written to disk. The archive stays open, and each read says from where, so there is no position that
threads or forked processes could disturb; archives can be pickled.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import psutil

from masksub.app.data.handles import Handles
from masksub.app.errors import InputError

__all__ = ["ARCHIVE_SUFFIXES", "TarArchive", "ZipArchive", "open_archive"]

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)


def open_archive(path: Path) -> ZipArchive | TarArchive:
    """List an archive.

    Raises:
        InputError: not an archive by its name, or not readable as one.
    """
    name = path.name.lower()
    if not name.endswith(ARCHIVE_SUFFIXES):
        raise InputError(
            f"{path} is neither a folder nor an archive; accepted are a folder and {', '.join(ARCHIVE_SUFFIXES)}"
        )
    try:
        return ZipArchive(path) if name.endswith(".zip") else TarArchive(path)
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{path} can't be read as an archive: {error}. It may be damaged or cut short") from error


class ZipArchive:
    """Members of a .zip, stored or deflated. ``names`` has a trailing slash on folders."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handles = Handles(limit=1)
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
        for info in infos:
            if info.flag_bits & 1:
                raise InputError(f"{info.filename} in {path} is encrypted; accepted are archives without a password")
            if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise InputError(
                    f"{info.filename} in {path} is compressed by method {info.compress_type}; accepted are stored (0) "
                    f"and deflated (8)"
                )
        self._infos = {info.filename.replace("\\", "/"): info for info in infos}
        self.names = list(self._infos)

    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            OSError: the member is damaged.
        """
        info = self._infos[name]
        header = self._handles.read(self.path, info.header_offset, 30)
        if header[:4] != b"PK\x03\x04" or len(header) < 30:
            raise OSError("its header in the archive is damaged")
        # The local name and extra field may be longer than those of the directory at the end.
        start = info.header_offset + 30
        start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = self._handles.read(self.path, start, info.compress_size)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, info.file_size)
            except zlib.error as error:
                raise OSError(f"its data in the archive are damaged ({error})") from error
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise OSError("its data in the archive are damaged (the checksum differs)")
        return data


class TarArchive:
    """Members of a .tar. Those of a compressed one are kept in memory as they are in the archive: encoded images.

    A compressed tar can be read from its beginning only, so listing it means reading all of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handles = Handles(limit=1)
        self._spans: dict[str, tuple[int, int]] = {}
        self._content: bytearray | None = None if path.name.lower().endswith(".tar") else bytearray()
        room = psutil.virtual_memory().available // 2
        self.names = []
        # "r|" reads once, from front to back. Decompression is left to the other modules, which raise an error at the
        # end of a file that is cut short; tarfile would take it for the end of the archive.
        mode: Any = "r:" if self._content is None else "r|"
        with _stream(path) as file, tarfile.open(fileobj=file, mode=mode) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isdir():
                    self.names.append(name + "/")
                    continue
                if not member.isreg():
                    continue
                if self._content is None:
                    self._spans[name] = (member.offset_data, member.size)
                else:
                    if len(self._content) + member.size > room:
                        raise InputError(
                            f"{path} is compressed and holds more than {room >> 20} MiB, half of the free memory; "
                            f"pack the images as .zip or .tar, or unpack them into a folder"
                        )
                    content = archive.extractfile(member)
                    assert content is not None
                    self._spans[name] = (len(self._content), member.size)
                    self._content += content.read()
                self.names.append(name)
            end: int = archive.offset
            if self._content is None:
                file.seek(end)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("it has no end mark")

    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            OSError: the archive ends before the member does.
        """
        start, size = self._spans[name]
        if self._content is not None:
            return bytes(self._content[start : start + size])
        data = self._handles.read(self.path, start, size)
        if len(data) != size:
            raise OSError("the archive ends inside it")
        return data


def _stream(path: Path) -> Any:
    """The tar inside a file, decompressed as its name says."""
    name = path.name.lower()
    if name.endswith((".gz", ".tgz")):
        return gzip.open(path)
    if name.endswith((".bz2", ".tbz2")):
        return bz2.open(path)
    if name.endswith((".xz", ".txz")):
        return lzma.open(path)
    return path.open("rb")
