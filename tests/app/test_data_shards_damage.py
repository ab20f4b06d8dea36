"""Damaged and hostile tar shards: named or counted, never guessed at, never unpacked."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from masksub.app.data import EvalBatches, TrainBatches, open_source
from masksub.app.errors import InputError
from masksub.app.settings import Augment
from tests.app.test_data_shards import grey, opened, sample, settings, values, write_shard, write_shards


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def damaged(tmp_path: Path, kind: str) -> tuple[Path, str, int]:
    """A set of four shards with one fault; its message, and how many of 40 images are left."""
    root = write_shards(tmp_path / "set")
    shard = root / "train-0001.tar"
    content = shard.read_bytes()
    members = [(name, part) for number in range(10, 20) for name, part in sample(number).items()]
    if kind == "cut inside an image":  # a header, an image of a block, a header, a label; the image is in block 13
        shard.write_bytes(content[: 512 * 13 + 30])
        return root, r"train-0001\.tar: the shard is cut short inside 0013\.png", 33
    if kind == "cut inside a header":
        shard.write_bytes(content[: 512 * 12 + 100])
        return root, r"train-0001\.tar: the shard is cut short after byte 6244: it has no end mark", 33
    if kind == "cut between members":
        shard.write_bytes(content[: 512 * 12])
        return root, r"train-0001\.tar: the shard is cut short after byte 6144", 33
    if kind == "header":
        shard.write_bytes(content[: 512 * 12] + b"?" * 512 + content[512 * 13 :])
        return root, r"train-0001\.tar: the header at byte 6144 is damaged", 33
    if kind == "empty":
        shard.write_bytes(b"")
        return root, r"train-0001\.tar: the shard is cut short after byte 0", 30
    if kind == "no tar":
        shard.write_bytes(b"hello " * 1000)
        return root, r"train-0001\.tar: the header at byte 0 is damaged", 30
    if kind == "missing shard":
        shard.unlink()
        return root / "train-{0000..0003}.tar", r"train-0001\.tar is missing: data\.train = .*names it", 30
    content = {
        "no cls": b"",
        "text": b"cat",
        "float": b"1.0",
        "underscore": b"1_0",
        "negative": b"-1",
        "large": b"1000000",
        "very large": b"9" * 5000,
    }.get(kind, b"0")
    for place, (name, _) in enumerate(members):
        if name == "0013.cls":
            members[place] = (name, content)
            if kind == "no cls":
                del members[place]
            break
    if kind == "same key twice":
        members.append(("0013.jpg", grey(200, "JPEG")))
    if kind == "same label twice":
        members.append(("0013.cls", b"1"))
    if kind in {"bad json", "deep json", "json without"}:
        json_content = {"bad json": b"{", "deep json": b"[" * 100_000, "json without": b'{"label": true}'}[kind]
        members[place] = ("0013.json", json_content)
    write_shard(shard, members)
    message = {
        "no cls": "its label is missing: there is neither a .cls nor a .json",
        "negative": "its label 0013.cls is -1, out of range; accepted are 0 to 999999",
        "large": "its label 0013.cls is 1000000, out of range",
        "very large": "its label 0013.cls takes 5000 bytes",
        "same key twice": r"its key comes 2 times in the shard \(0013.png, 0013.jpg\)",
        "same label twice": "its label 0013.cls comes 2 times",
        "bad json": r"its label 0013\.json is .*; accepted is JSON with a whole number",
        "deep json": r"its label 0013\.json is .*; accepted is JSON with a whole number",
        "json without": r"its label 0013\.json is .*; accepted is JSON with a whole number",
    }.get(kind, r"its label 0013.cls is '.*'; accepted is a whole number")
    return root, rf"0013\.png in .*train-0001\.tar: {message}", 39


FAULTS = [
    *("cut inside an image", "cut inside a header", "cut between members", "header", "empty", "no tar"),
    *("missing shard", "no cls", "text", "float", "underscore", "negative", "large", "very large"),
    *("same key twice", "same label twice", "bad json", "deep json", "json without"),
]


@pytest.mark.parametrize("kind", FAULTS)
def test_damage_is_named_or_counted(tmp_path: Path, kind: str) -> None:
    """Silently losing half a shard, or guessing a label, must not happen; what is whole must still be used."""
    path, message, left = damaged(tmp_path, kind)
    for _ in "ab":  # from the headers, and from the index
        with pytest.raises(InputError, match=message + r".*data\.on_error=skip"):
            opened(path)
    data = settings(path, on_error="skip")
    train = TrainBatches(open_source(data, "train", 0), data, Augment(), seed=0, batch_size=1, num_classes=3)
    evaluation = EvalBatches(open_source(data, "val", 0), data, Augment(), batch_size=8)
    assert train.images_per_epoch == left == sum(len(y) for _, y in evaluation)
    assert train.skipped == evaluation.skipped == 1
    with pytest.raises(InputError, match=r"1 images can't be decoded, more than data\.max_skipped = 0: .*train-0001"):
        data = settings(path, on_error="skip", max_skipped=0)
        TrainBatches(open_source(data, "train", 0), data, Augment(), seed=0, batch_size=1, num_classes=3)


def test_what_a_damaged_shard_costs_is_told(tmp_path: Path) -> None:
    """It counts as one against max_skipped whatever it loses: who reads the message must see how much that may be."""
    for kind, left in (("cut inside an image", 3), ("cut between members", 3), ("header", 3), ("empty", 0)):
        path, _, _ = damaged(tmp_path / kind, kind)
        (problem,) = opened(path, on_error="skip").problems
        assert problem.endswith(
            f"what comes after it is lost, {left} images are left; the whole shards of the set have 10 images "
            f"(median); counted as one"
        )
    path, _, _ = damaged(tmp_path / "missing", "missing shard")
    (problem,) = opened(path, on_error="skip").problems
    assert problem.endswith("names it; the whole shards of the set have 10 images (median); counted as one")
    alone = write_shard(tmp_path / "alone.tar", sample(1) | sample(2))
    alone.write_bytes(alone.read_bytes()[: 512 * 4])
    (problem,) = opened(alone, on_error="skip").problems
    assert problem.endswith("1 images are left; counted as one"), "nobody knows how many there were"


@pytest.mark.parametrize("label", [{"photo.v1.cls": b"0"}, {"photo.v1.json": b'{"label": 1}'}, {"photo.v1.cls": b"?"}])
def test_a_labelled_image_with_a_point_in_its_name_is_not_lost_without_a_word(
    tmp_path: Path, label: dict[str, bytes]
) -> None:
    """Half a set may be named so; webdataset takes "v1.jpg" for what kind of file it is."""
    members = sample(1) | {"a.b/photo.v1.jpg": grey(5, "JPEG")} | {f"a.b/{name}": it for name, it in label.items()}
    path = write_shard(tmp_path / "x.tar", members)
    message = r"a\.b/photo\.v1\.jpg in .*x\.tar: its name has a point before its suffix; its key would be 'photo'"
    for _ in "ab":  # from the headers, and from the index
        with pytest.raises(InputError, match=message):
            opened(path)
    source = opened(path, on_error="skip")
    assert values(source) == [1] and len(source.problems) == 1


def test_further_images_of_a_key_are_passed_over(tmp_path: Path) -> None:
    """As webdataset has them, beside the one that is trained on."""
    more = {
        "0001.seg.png": grey(2),
        "0001.seg.json": b'{"made by": "hand"}',
        "0001.depth.png": grey(3),
        ".x.y.png": b"",
    }
    link = tarfile.TarInfo("0001.link.png")
    link.type, link.linkname = tarfile.LNKTYPE, "0001.png"
    source = opened(write_shard(tmp_path / "x.tar", [*(sample(1) | more).items(), (link, b"")]))
    assert values(source) == [1] and not source.problems


def test_a_set_without_any_image(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "x.tar", {"a.txt": b"1"})
    with pytest.raises(InputError, match=r"no image with a label in 1 shard\(s\); accepted are members KEY\.jpg"):
        opened(path)


def hostile(kind: str) -> list[tuple[str | tarfile.TarInfo, bytes]]:
    name = {"up": "../../evil.png", "inside up": "a/../../evil.png", "absolute": "/evil.png"}.get(kind, "evil.png")
    info = tarfile.TarInfo(name)
    if kind in {"symbolic link", "hard link"}:
        info.type = tarfile.SYMTYPE if kind == "symbolic link" else tarfile.LNKTYPE
        info.linkname = "/etc/hostname"
        return [(info, b"")]
    if kind == "device":
        info.type = tarfile.CHRTYPE
        return [(info, b"")]
    return [(info, grey(99))]


@pytest.mark.parametrize("kind", ["up", "inside up", "absolute", "symbolic link", "hard link", "device"])
def test_members_that_lead_out_of_the_archive(tmp_path: Path, kind: str) -> None:
    """Nothing is ever unpacked, a link is never followed, and what looks like an attack is said."""
    members = [*sample(1).items(), *hostile(kind), ("evil.cls", b"0")]
    path = write_shard(tmp_path / "a" / "b" / "x.tar", members)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"evil\.png in .*x\.tar: (its name leads out|it is (a link|no regular file))"):
        opened(path)
    source = opened(path, on_error="skip")
    assert values(source) == [1] and len(source.problems) == 1
    new = {each.name for each in set(tmp_path.rglob("*")) - set(before)}
    assert all(name.endswith((".npz", ".lock")) or name in {"cache", "masksub"} for name in new), new
    assert not Path("/evil.png").exists()


def test_a_size_that_leads_back_does_not_hang(tmp_path: Path) -> None:
    """A negative size sends tarfile in circles."""
    path = write_shard(tmp_path / "x.tar", sample(1) | sample(2))
    content = bytearray(path.read_bytes())
    header = tarfile.TarInfo("loop.png")
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" + (-1024).to_bytes(11, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    content[2048:2560] = block
    path.write_bytes(content)
    source = opened(path, on_error="skip")
    assert values(source) == [1] and len(source.problems) == 1


def test_names_fit_to_be_printed(tmp_path: Path) -> None:
    """A name must not move a terminal's cursor, break the index's lines, or fail to be encoded."""
    names = ["\x1b[2Jred", "two\nlines", "\udcff byte"]
    members = [(f"{name}.{kind}", grey(7) if kind == "png" else b"0") for name in names for kind in ("png", "cls")]
    path = write_shard(tmp_path / "x.tar", members)
    for _ in "ab":
        source = opened(path)
        where = [source.where(index) for index in range(3)]
        assert values(source) == [7] * 3 and all(each.isprintable() and each.encode() for each in where)
        assert where[1].startswith("two\\nlines.png in ")
