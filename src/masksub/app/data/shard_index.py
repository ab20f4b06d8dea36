"""The index of a set of shards: made once by reading their headers, kept in a file, renewed where a shard changed.

The file lies beside the shards, as .masksub-NAME.npz, or in the user's cache folder where that can't be written to.
It holds numbers and names, no pickles. A shard is taken for unchanged if its size and its time of change are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from masksub.app.data.shard_scan import Shard, scan

__all__ = ["cache_folder", "index_of"]

_VERSION = 2
"""Raised with each change of what a scan finds: an index of before would go on hiding it."""
_PATIENCE = 600
"""Seconds to wait for another process that makes the same index, before making it as well."""


def cache_folder() -> Path:
    """Where this user's programs keep what can be made again."""
    if found := os.environ.get("XDG_CACHE_HOME"):
        return Path(found) / "masksub"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "masksub" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "masksub"
    return Path.home() / ".cache" / "masksub"


def index_of(paths: Sequence[Path], base: Path, progress: Callable[[int, int], None] | None = None) -> list[Shard]:
    """What is inside each shard, in the order of the paths.

    Of several processes on a machine one reads the headers, and the others wait for its file.

    Args:
        paths: the shards, all below ``base``.
        base: the folder that they share.
        progress: called with (done, total) shards while headers are read.

    Raises:
        InputError: a shard can't be opened.

    Side effects: writes the index file. Where that is not possible, headers are read each time.
    """
    by_name = {path.relative_to(base).as_posix(): path for path in paths}
    places = [
        base / f".masksub-{_digest(*by_name)}.npz",
        cache_folder() / f"{_digest(str(base), *by_name)}.npz",
    ]
    known = _known(places, by_name)
    if len(known) < len(by_name):
        with _alone(places[1]):
            known = _known(places, by_name)  # another process may have made it meanwhile
            if missing := [name for name in by_name if name not in known]:
                known |= _scanned({name: by_name[name] for name in missing}, progress)
                _keep(places, [known[name] for name in by_name])
    return [known[name] for name in by_name]


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogateescape"), digest_size=8).hexdigest()


def _known(places: Sequence[Path], by_name: Mapping[str, Path]) -> dict[str, Shard]:
    """Of the first index file that can be read, the shards that are still as they were."""
    for place in places:
        # Whatever is wrong with an index file, it can be made again.
        with contextlib.suppress(Exception):
            return {
                shard.name: shard
                for shard in _unpack(place.read_bytes())
                if shard.name in by_name and _same(by_name[shard.name].stat(), shard)
            }
    return {}


def _same(stat: os.stat_result, shard: Shard) -> bool:
    return (stat.st_size, stat.st_mtime_ns) == (shard.size, shard.mtime_ns)


def _scanned(paths: Mapping[str, Path], progress: Callable[[int, int], None] | None) -> dict[str, Shard]:
    # Threads, because what takes the time on a network disk is waiting for it.
    pool = ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1)))
    found = {}
    try:
        for shard in pool.map(scan, paths.values(), paths):
            found[shard.name] = shard
            if progress is not None:
                progress(len(found), len(paths))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return found


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """While active, no other process of this machine makes the same index; without a lock if none can be had."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError, NotImplementedError, Timeout):
            place.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(place.with_suffix(".lock"), timeout=_PATIENCE))
        yield


def _keep(places: Sequence[Path], shards: Sequence[Shard]) -> None:
    """Write the index to the first place that can be written to, whole or not at all."""
    content = _pack(shards)
    for place in places:
        # A name of its own: processes of two machines may have the same number, and the lock may not reach so far.
        part = place.with_name(f"{place.name}.{uuid.uuid4().hex[:12]}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(place)
            return
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _pack(shards: Sequence[Shard]) -> bytes:
    head = {
        "version": _VERSION,
        "shards": [[each.name, each.size, each.mtime_ns, len(each.members), each.problems] for each in shards],
    }
    names = "\n".join(member for each in shards for member in each.members)  # printable, so without line ends
    file = io.BytesIO()
    np.savez_compressed(
        file,
        head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
        names=np.frombuffer(names.encode(), dtype=np.uint8),
        spans=np.concatenate([each.spans for each in shards]),
        labels=np.concatenate([each.labels for each in shards]),
    )
    return file.getvalue()


def _unpack(content: bytes) -> list[Shard]:
    """The shards of an index file; any exception if it is not one."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        head = json.loads(file["head"].tobytes())
        members = file["names"].tobytes().decode().split("\n")
        spans, labels = file["spans"], file["labels"]
    if head["version"] != _VERSION:
        raise ValueError("made by another version")
    shards, start = [], 0
    for name, size, mtime_ns, count, problems in head["shards"]:
        part = slice(start, start + count)
        shard = Shard(
            name, size, mtime_ns, members[part], spans[part], labels[part], [tuple(each) for each in problems]
        )
        if not (len(shard.members) == len(shard.labels) == len(shard.spans) == count and spans.shape[1] == 2):
            raise ValueError("its parts do not go together")
        if count and (shard.spans.min() < 0 or shard.spans.sum(axis=1).max() > size or shard.labels.min() < 0):
            raise ValueError("it points outside of a shard")
        shards.append(shard)
        start += count
    return shards
