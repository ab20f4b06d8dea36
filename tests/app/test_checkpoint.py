"""If these fail, a run can be lost, or a damaged or hostile file is loaded."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from masksub.app import checkpoint
from masksub.app.errors import InputError
from tests.cases.timm_vit import VIT, vit


def write(folder: Path, update: int, model: nn.Module, keep: int = 2) -> checkpoint.Checkpoint:
    return checkpoint.save(folder, update, {"model": model.state_dict()}, {"update": update}, keep)


def test_round_trip_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    models = [vit() for _ in range(4)]
    for update, model in enumerate(models):
        write(tmp_path, update, model)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["update-00000002", "update-00000003"]
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None and found.update == 3 and found.training_state() == {"update": 3}
    target = vit()
    checkpoint.load_weights(target, found.weights)
    for key, value in models[3].state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


def test_timm_loads_the_weights_as_they_are(tmp_path: Path) -> None:
    model = vit().eval()
    path = write(tmp_path, 1, model).weights
    loaded = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(path), **VIT).eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(x), loaded(x))


def test_weights_that_share_memory_are_written(tmp_path: Path) -> None:
    linear = nn.Linear(4, 4)
    model = nn.Sequential(linear, linear)
    checkpoint.load_weights(model, write(tmp_path, 1, model).weights)


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt"])
@pytest.mark.parametrize(
    ("harm", "message"), [(damage_cut, "is cut short"), (damage_flip, "checksum differs"), (Path.unlink, "is missing")]
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(
    tmp_path: Path, name: str, harm: Any, message: str
) -> None:
    write(tmp_path, 1, vit())
    harm(write(tmp_path, 2, vit()).path / name)
    said: list[str] = []
    found = checkpoint.latest(tmp_path, said.append)
    assert found is not None and found.update == 1
    assert len(said) == 1 and message in said[0] and "update-00000002" in said[0] and name in said[0]


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    made = write(tmp_path, 1, vit())
    (made.path / "manifest.json").write_text("{")
    said: list[str] = []
    assert checkpoint.latest(tmp_path, said.append) is None
    assert "manifest.json is missing or unreadable" in said[0]


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full while the second is written: the first is intact and is what is found."""
    write(tmp_path, 1, vit())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, 2, vit())
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None and found.update == 1
    assert write(tmp_path, 2, vit()).update == 2
    assert not list(tmp_path.glob(".writing*"))


class Hostile:
    """Unpickled, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.target, "harm"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's own remark on the second file
def test_a_pickle_in_place_of_weights_is_refused_and_not_executed(tmp_path: Path) -> None:
    harm = tmp_path / "harm.txt"
    for number, writer in enumerate((lambda o, p: torch.save(o, p), lambda o, p: p.write_bytes(pickle.dumps(o)))):
        path = tmp_path / f"{number}.pth"
        writer({"weight": Hostile(harm)}, path)
        with pytest.raises(InputError, match="is refused: it is a pickle that holds more than weights"):
            checkpoint.load_weights(vit(), path)
    assert not harm.exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_that_is_no_weights_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        checkpoint.load_weights(vit(), path)
    with pytest.raises(InputError, match="no such file"):
        checkpoint.load_weights(vit(), tmp_path / "absent.safetensors")


def test_weights_of_another_model_are_refused_with_the_names(tmp_path: Path) -> None:
    path = write(tmp_path, 1, vit(depth=1)).weights
    with pytest.raises(InputError, match=r"(?s)does not fit VisionTransformer: .*blocks\.1"):
        checkpoint.load_weights(vit(depth=2), path)


def test_a_moving_average_is_what_is_evaluated(tmp_path: Path) -> None:
    one, two = vit().state_dict(), vit().state_dict()
    made = checkpoint.save(tmp_path, 1, {"model": one, "ema": two}, {}, 2)
    assert made.weights.name == "ema.safetensors"
    assert set(json.loads((made.path / "manifest.json").read_text())["files"]) == {
        "model.safetensors", "ema.safetensors", "training.pt",
    }  # fmt: skip


def test_tensors_only(tmp_path: Path) -> None:
    made = checkpoint.save(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {"scaler": None, "t": torch.ones(3)}, 2)
    state: dict[str, Tensor] = made.training_state()
    assert torch.equal(state["t"], torch.ones(3))


def test_a_manifest_of_another_form_and_a_copy_beside_it_do_not_end_the_search(tmp_path: Path) -> None:
    """Both would end in a traceback, and the checkpoint before would not be used."""
    made = write(tmp_path, 1, nn.Linear(1, 1))
    shutil.copytree(made.path, tmp_path / "update-00000001.bak")
    newer = write(tmp_path, 2, nn.Linear(1, 1))
    manifest = {"format": 1, "update": 2, "files": {"model.safetensors": 5, "training.pt": 5}}
    (newer.path / "manifest.json").write_text(json.dumps(manifest))
    heard: list[str] = []
    found = checkpoint.latest(tmp_path, heard.append)
    assert found is not None and found.update == 1 and "manifest.json" in heard[0]
