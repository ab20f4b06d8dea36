"""Hugging Face data sets through timm, on small sets that the tests make; no network."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from masksub.app.data import EvalBatches, TrainBatches, open_data, open_source
from masksub.app.errors import InputError
from masksub.app.settings import Augment, Data


def write_set(root: Path, images: int, *, columns: tuple[str, str] = ("image", "label"), damaged: int = -1) -> Data:
    """ROOT/Set of parquet files, images with the grey values 0, 1, ..., and the data section that opens it.

    Skips the test where the library is not installed.
    """
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {columns[0]: datasets.Image(), columns[1]: datasets.ClassLabel(names=["ant", "bee", "cow"])}
    )
    folder = root / "Set"
    folder.mkdir(parents=True)
    for split, count in (("train", images), ("validation", max(1, images // 2))):
        rows = {columns[0]: [_png(n, n == damaged) for n in range(count)], columns[1]: [n % 3 for n in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return Data(name=f"hfds/{folder}", root=str(root / "cache"), channels=1, image_size=8)


def _png(value: int, damaged: bool) -> dict[str, bytes | None]:
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return {"bytes": b"no image" if damaged else file.getvalue(), "path": None}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    """Images, labels and class names must be those of the set; the path's capital letters must survive."""
    data = write_set(tmp_path, 8)
    train, val = open_data(data, 0)
    assert (len(train), len(val)) == (8, 4)
    assert train.labels.tolist() == [n % 3 for n in range(8)] and val.classes == ["ant", "bee", "cow"]
    assert [train.read(index).getpixel((0, 0)) for index in range(8)] == list(range(8))
    assert train.where(5) == f"image 5 of {data.name} (train)"
    batches = TrainBatches(train, data, Augment(), seed=0, batch_size=4, num_classes=3)
    assert batches.held == "memory" and sum(len(y) for _, y in batches.epoch(0)) == 8
    evaluation = EvalBatches(val, data, Augment(), batch_size=3)
    assert torch.equal(torch.cat([y for _, y in evaluation]), val.labels)


def test_a_damaged_image_of_a_set(tmp_path: Path) -> None:
    data = write_set(tmp_path, 8, damaged=5).model_copy(update={"cache": "none", "workers": 0})
    source = open_source(data, "train", 0)
    with pytest.raises(InputError, match=r"image 5 of hfds/.*Set \(train\) can't be decoded: it is not an image"):
        list(TrainBatches(source, data, Augment(), seed=0, batch_size=8, num_classes=3).epoch(0))
    data = data.model_copy(update={"on_error": "skip"})
    batches = TrainBatches(source, data, Augment(), seed=0, batch_size=8, num_classes=3)
    assert [len(y) for _, y in batches.epoch(0)] == [7] and batches.skipped == 1


def test_sets_that_lead_nowhere(tmp_path: Path) -> None:
    """A missing split or column must be told with those that are there, before training."""
    data = write_set(tmp_path, 2)
    for which in ("train", "val"):
        with pytest.raises(InputError, match=rf"data\.{which}_split = 'trian': not found .*\['train', 'validation'\]"):
            open_source(data.model_copy(update={f"{which}_split": "trian"}), which, 0)
    with pytest.raises(InputError, match=r"data\.name = 'hfds//no/such', data\.train_split = 'train': not found"):
        open_source(data.model_copy(update={"name": "hfds//no/such"}), "train", 0)
    with pytest.raises(InputError, match=r"data\.name = 'hfds/some/thing', data\.train_split = 'train': not found"):
        open_source(data.model_copy(update={"name": "hfds/some/thing"}), "train", 0)
    for number, columns in enumerate([("img", "label"), ("image", "fine_label")]):
        other = write_set(tmp_path / str(number), 2, columns=columns)
        missing = {"img": "image", "fine_label": "label"}[(set(columns) - {"image", "label"}).pop()]
        with pytest.raises(InputError, match=rf"no column '{missing}'; the set has '{columns[0]}', '{columns[1]}'"):
            open_source(other, "train", 0)


def test_labels_without_names(tmp_path: Path) -> None:
    """Plain numbers as labels: classes are called by them; text as label is refused."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    for name, labels in (("numbers", [2, 0]), ("text", ["ant", "bee"])):
        kind = datasets.Value("int64" if name == "numbers" else "string")
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        rows = {"image": [_png(0, False), _png(1, False)], "label": labels}
        (tmp_path / name).mkdir()
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / name / "train.parquet")
    data = Data(name=f"hfds/{tmp_path}/numbers", root=str(tmp_path / "cache"), image_size=8)
    assert open_source(data, "train", 0).classes == ["0", "1", "2"]
    with pytest.raises(InputError, match="one whole number as label for each image is accepted"):
        open_source(data.model_copy(update={"name": f"hfds/{tmp_path}/text"}), "train", 0)
