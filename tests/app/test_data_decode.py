"""Decoding: every kind of pixel comes out right, and a damaged file is never taken for an image."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from masksub.app.data import EvalBatches, ImageError, TrainBatches, load_image, open_source, prepare
from masksub.app.data.skips import Skips
from masksub.app.errors import InputError
from masksub.app.settings import Augment, Data
from tests.app.test_data_sources import folders, pack, write_images


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey16(values: list[int], kind: str) -> bytes:
    return saved(Image.fromarray(np.array([values], dtype=np.uint16)), kind)


RED = Image.new("RGB", (4, 4), (255, 0, 0))
TRANSPARENT = Image.new("P", (4, 4), 1)
TRANSPARENT.putpalette([0, 0, 255, 255, 0, 0, 0, 255, 0])
TRANSPARENT.putpixel((3, 3), 2)


@pytest.mark.parametrize(
    ("content", "first"),
    [
        (saved(RED, "PNG"), (255, 0, 0)),
        (saved(RED.quantize(4), "PNG"), (255, 0, 0)),
        (saved(TRANSPARENT, "PNG", transparency=bytes([0, 128, 200])), (255, 0, 0)),
        (saved(RED.quantize(4), "GIF"), (255, 0, 0)),
        (saved(Image.new("RGBA", (4, 4), (255, 0, 0, 10)), "PNG"), (255, 0, 0)),
        (saved(Image.new("LA", (4, 4), (77, 10)), "PNG"), (77, 77, 77)),
        (saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (saved(Image.new("1", (4, 4), 1), "PNG"), (255, 255, 255)),
        (grey16([0xABCD, 0], "PNG"), (0xAB, 0xAB, 0xAB)),
        (grey16([0x00FF, 0], "TIFF"), (0, 0, 0)),
        (grey16([0xFFFF, 0], "PPM"), (255, 255, 255)),
    ],
)
def test_all_modes(content: bytes, first: tuple[int, int, int]) -> None:
    """A wrong conversion (16 bits cut off at 255, a palette's indices for grey values) trains on nonsense, silently."""
    rgb, grey = load_image(content, 3), load_image(content, 1)
    assert rgb.mode == "RGB" and rgb.getpixel((0, 0)) == first
    expected = Image.new("RGB", (1, 1), first).convert("L").getpixel((0, 0))
    assert grey.mode == "L" and grey.getpixel((0, 0)) == expected


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=rf"mode '{mode}', 32 bits of unknown range; accepted are 8 and 16 bits"):
        load_image(saved(Image.new(mode, (4, 4), 7), "TIFF"), 3)


def photo(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_files_are_errors_even_if_pil_was_told_otherwise(tmp_path: Path, kind: str, monkeypatch) -> None:
    """Another library may set PIL's global switch; the lower half of an image would then be grey."""
    path = tmp_path / "half.img"
    content = saved(photo(), kind)
    path.write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match=r"half\.img can't be decoded: .*truncated"):
        load_image(path, 3)


def test_other_damage(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ImageError, match=r"gone\.png can't be decoded: No such file"):
        load_image(tmp_path / "gone.png", 3)
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    with pytest.raises(ImageError, match=r"text\.jpg can't be decoded: it is not an image"):
        load_image(str(text), 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for side in (12, 64):  # PIL warns of the first and refuses the second
        with pytest.raises(ImageError, match=r"can't be decoded: .*(pixels|exceeds)"):
            load_image(saved(photo((side, side)), "PNG"), 3)


def test_prepare_is_resize_of_the_shorter_side_and_centre_crop() -> None:
    """Evaluation, prediction and held images all go through this."""
    image = photo((48, 32))
    expected = image.resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
    assert torch.equal(prepare(image, 16, 1.0, 3), torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    expected = image.resize((30, 20), Image.Resampling.BICUBIC).crop((7, 2, 23, 18))  # 16 / 0.8 = 20
    assert torch.equal(prepare(image, 16, 0.8, 3), torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    same = photo((16, 16))
    assert torch.equal(prepare(same, 16, 1.0, 3), torch.from_numpy(np.array(same)).permute(2, 0, 1))
    grey = prepare(image, 16, 1.0, 1)
    assert grey.shape == (1, 16, 16) and grey.dtype == torch.uint8


# What a run does with a damaged file


def damaged_set(tmp_path: Path, kind: str) -> tuple[Path, str]:
    """40 images, two of which are damaged; the path, and how messages call the first."""
    root = write_images(tmp_path / "set", {"a": 20, "b": 20})
    (root / "a" / "3.png").write_text("no image")
    content = (root / "b" / "7.png").read_bytes()
    (root / "b" / "7.png").write_bytes(content[:40])
    if kind == "folder":
        return root, str(root / "a" / "3.png")
    path = pack(root, tmp_path / f"set{kind}")
    return path, f"a/3.png in {path}"


def train_batches(path: Path, cache: str, workers: int = 0, augment: Augment | None = None, **more) -> TrainBatches:
    data = folders(path, cache=cache, workers=workers, **more)
    augment = augment or Augment()
    return TrainBatches(open_source(data, "train", 0), data, augment, seed=0, batch_size=4, num_classes=2)


@pytest.mark.parametrize("kind", ["folder", ".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize(("cache", "workers"), [("auto", 0), ("none", 0), ("none", 2)])
def test_a_damaged_image_stops_the_run_with_its_name(tmp_path: Path, kind: str, cache: str, workers: int) -> None:
    path, name = damaged_set(tmp_path, kind)
    with pytest.raises(InputError) as error:
        list(train_batches(path, cache, workers).epoch(0))
    second = name.replace("a/3.png", "b/7.png")
    assert str(error.value).startswith((f"{name} can't be decoded", f"{second} can't be decoded"))
    assert "set data.on_error=skip" in str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.parametrize(("cache", "workers"), [("auto", 0), ("none", 0), ("none", 2)])
def test_skipped_images_are_counted_once_and_not_replaced(tmp_path: Path, cache: str, workers: int) -> None:
    path, _ = damaged_set(tmp_path, ".zip")
    batches = train_batches(path, cache, workers, on_error="skip")
    for epoch in (0, 1):
        x = torch.cat([x for x, _ in batches.epoch(epoch)])
        seen = (x[:, 0, 0, 0] * 127.5 + 127.5).round().int().tolist()
        assert len(set(seen)) == len(seen), "a neighbour was used twice"
        assert not {3, 57} & set(seen), "a damaged image was used"
        assert len(seen) == (36 if cache == "auto" else 38)
    assert batches.skipped == 2
    assert sorted(each.split(" in ")[0] for each in batches.skipped_files) == ["a/3.png", "b/7.png"]
    source, data = open_source(folders(path), "val", 0), folders(path, cache=cache, workers=workers, on_error="skip")
    evaluation = EvalBatches(source, data, Augment(), batch_size=8)
    assert sum(len(y) for _, y in evaluation) == 38 and evaluation.skipped == 2


def test_skipping_in_a_batch_that_is_mixed_keeps_pairs(tmp_path: Path) -> None:
    """timm's mixup fails on an odd number."""
    path, _ = damaged_set(tmp_path, "folder")
    batches = train_batches(path, "none", on_error="skip", augment=Augment(mixup=1.0))
    assert sorted(len(x) for x, _ in batches.epoch(0)) == [2, 2, *[4] * 8]


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_too_many_skipped(tmp_path: Path, cache: str) -> None:
    path, _ = damaged_set(tmp_path, "folder")
    with pytest.raises(InputError, match=r"2 images can't be decoded, more than data\.max_skipped = 1: .*set/[ab]/"):
        list(train_batches(path, cache, on_error="skip", max_skipped=1).epoch(0))


def test_messages_of_the_first_ten_are_kept() -> None:
    """An image that is met again in each epoch must not push its own message out."""
    skips = Skips(Data(on_error="skip"))
    for _ in "ab":
        for index in range(12):
            skips.add(index, f"image {index}")
    assert len(skips) == 12 and skips.first == [f"image {index}" for index in range(10)]


def test_what_was_skipped_survives_a_resumption(tmp_path: Path) -> None:
    """Otherwise the summary of a resumed run counts the damaged images of its last part only, or some of them twice."""
    path, name = damaged_set(tmp_path, "folder")
    first = train_batches(path, "none", on_error="skip")
    part = first.epoch(0)
    while first.skipped < 1:
        next(part)
    state = json.loads(json.dumps(first.state_dict()))
    again = train_batches(path, "none", on_error="skip")
    again.load_state_dict(state)
    assert again.skipped == 1 and again.skipped_files == first.skipped_files
    list(again.epoch(0))
    assert again.skipped == 2
    again.load_state_dict(state)  # as of another process that met the same image
    assert again.skipped == 2 and again.state_dict()["skipped"].keys() == {"13", "37"}
    assert any(each.startswith(name) for each in again.skipped_files)


@pytest.mark.parametrize("kind", ["folder", ".zip", ".tar", "shards"])
@pytest.mark.parametrize("fault", ["corrupt", "empty", "huge"])
@pytest.mark.parametrize(("cache", "workers"), [("memory", 0), ("none", 0), ("none", 1)])
def test_faulty_images_stop_or_are_skipped(tmp_path: Path, monkeypatch, kind, fault, cache, workers) -> None:
    """Each fault, wherever images lie and whoever decodes them; a huge one must not take the memory of the machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    root = write_images(tmp_path / "set", {"a": 4, "b": 4})
    faults = {"corrupt": b"\x89PNG\r\n\x1a\n?", "empty": b"", "huge": saved(photo((64, 64)), "PNG")}
    (root / "b" / "2.png").write_bytes(faults[fault])
    if kind == "shards":
        path, name = tmp_path / "x.tar", f"b/2.png in {tmp_path}/x.tar"
        for label, letter in enumerate("ab"):
            for number in range(4):
                (root / letter / f"{number}.cls").write_text(str(label))
        pack(root, path)
    else:
        path = root if kind == "folder" else pack(root, tmp_path / f"set{kind}")
        name = str(root / "b" / "2.png") if kind == "folder" else f"b/2.png in {path}"
    more = {"name": "shards"} if kind == "shards" else {}
    reason = {"corrupt": "", "empty": "it is empty, 0 bytes", "huge": r".*(4096|64 x 64) pixels"}[fault]
    with pytest.raises(InputError, match=rf"^{re.escape(name)} can't be decoded: {reason}.*data\.on_error=skip"):
        list(train_batches(path, cache, workers, **more).epoch(0))
    train = train_batches(path, cache, workers, on_error="skip", **more)
    assert sum(len(y) for _, y in train.epoch(0)) == (4 if cache == "memory" else 7)
    assert train.skipped == 1 and train.skipped_files[0].startswith(name)
    train.close()
    data = folders(path, cache=cache, workers=workers, on_error="skip", **more)
    evaluation = EvalBatches(open_source(data, "val", 0), data, Augment(), batch_size=3)
    assert sum(len(y) for _, y in evaluation) == 7 and evaluation.skipped == 1


def test_damaged_member_of_an_archive(tmp_path: Path) -> None:
    """Bytes that changed in a stored member decode without complaint; the checksum tells."""
    root = write_images(tmp_path / "set", {"a": 4})
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for image in sorted(root.rglob("*.png")):
            archive.write(image, image.relative_to(root).as_posix())
    content = bytearray(path.read_bytes())
    content[content.index(b"IEND") + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a/0\.png in .*set\.zip can't be read: .*checksum differs"):
        open_source(folders(path), "train", 0).read(0)


def test_progress_is_told_about_100_times_at_most() -> None:
    data = Data(name="digits", image_size=8, channels=1)
    calls: list[tuple[int, int]] = []
    source = open_source(data, "train", 0)
    kwargs = {"seed": 0, "batch_size": 4, "num_classes": 10}
    TrainBatches(source, data, Augment(), **kwargs, progress=lambda *each: calls.append(each))
    assert 20 <= len(calls) <= 100 and calls[-1] == (1297, 1297) and calls == sorted(calls)
