"""Weights to start from. If these fail, a finetuning starts from nothing without a word, or runs what a file says."""

from __future__ import annotations

import argparse
import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm.models
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from masksub.app import checkpoint, weights
from masksub.app.errors import InputError
from masksub.app.models import create_model
from masksub.app.recipe import load_recipe
from masksub.app.runs import RunFolder
from masksub.app.settings import Recipe
from tests.app.test_checkpoint import Hostile

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
HEAD = ("head.weight", "head.bias")
State = dict[str, Tensor]


def recipe(
    start: Any = None, name: str = "vit_tiny_patch16_224", size: int = 32, channels: int = 3, **kwargs: Any
) -> Recipe:
    given = {**(SWIN if name.startswith("swin") else VIT if "resnet" not in name else {}), **kwargs}
    return Recipe.model_validate(
        {
            "data": {"name": "digits", "image_size": size, "channels": channels},
            "model": {"name": name, "kwargs": given, "weights": None if start is None else str(start)},
            "train": {"epochs": 1},
        }
    )


def build(*args: Any, classes: int = 5, tell: Any = None, **kwargs: Any) -> nn.Module:
    return create_model(recipe(*args, **kwargs), classes, tell)


def trained(*args: Any, **kwargs: Any) -> State:
    """Weights that no initialisation gives."""
    torch.manual_seed(1)
    state = build(*args, **kwargs).state_dict()
    return {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()}


def saved(content: Any, folder: Path, name: str = "weights.pth") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def assert_from(model: nn.Module, state: State, new: tuple[str, ...] = ()) -> None:
    """Everything is the file's, bit for bit, but what is new."""
    own = model.state_dict()
    for key, value in own.items():
        if key not in new:
            assert torch.equal(value, state[key]), key
    assert set(own) >= set(new)


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.safetensors"])
@pytest.mark.parametrize(("model", "head"), [("vit_tiny_patch16_224", "head"), ("resnet10t", "fc")])
def test_a_file_gives_every_weight_and_a_head_of_other_classes_is_new(
    name: str, model: str, head: str, tmp_path: Path
) -> None:
    state = trained(name=model)
    path = saved(state, tmp_path, name)
    assert_from(build(path, model), state)
    torch.manual_seed(7)
    fresh = build(name=model, classes=9).state_dict()
    torch.manual_seed(7)
    said: list[str] = []
    other = build(path, model, classes=9, tell=said.append)
    assert_from(other, state, (f"{head}.weight", f"{head}.bias"))
    assert torch.equal(other.state_dict()[f"{head}.weight"], fresh[f"{head}.weight"]), "as initialised for this seed"
    assert said[0].endswith(f"new: {head}.weight, {head}.bias"), said
    assert len(said) == (1 if model.startswith("vit") else 2), "timm's ResNet is for another mean; nothing else is told"
    assert "state_dict" not in other.pretrained_cfg, "the model would hold the file's tensors as well"


def test_both_heads_of_a_distilled_model(tmp_path: Path) -> None:
    state = trained(name="deit_tiny_distilled_patch16_224")
    path = saved(state, tmp_path)
    new = (*HEAD, "head_dist.weight", "head_dist.bias")
    assert_from(build(path, "deit_tiny_distilled_patch16_224"), state)
    assert_from(build(path, "deit_tiny_distilled_patch16_224", classes=9), state, new)


def test_a_file_has_the_classes_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of timm's published files have a class for the background first; the user's have not."""
    config = timm.models._registry._model_pretrained_cfgs["vit_tiny_patch16_224.augreg_in21k_ft_in1k"]
    monkeypatch.setattr(config, "label_offset", 1)
    state = trained()
    assert_from(build(saved(state, tmp_path)), state)


def test_mae(tmp_path: Path) -> None:
    """The encoder of a pretraining: no head; a decoder and a mask token beside it; the script's arguments, harmless."""
    encoder = {key: value for key, value in trained().items() if key not in HEAD}
    beside = {"mask_token": torch.rand(1, 1, 32), "decoder_blocks.0.norm1.weight": torch.rand(16)}
    content = {"model": {**encoder, **beside}, "epoch": 3, "args": argparse.Namespace(lr=1.0)}
    path, said = saved(content, tmp_path), []
    assert_from(build(path, tell=said.append), encoder, HEAD)
    assert "new: head.weight, head.bias; not used: decoder_blocks, mask_token" in said[0]
    # Finetuning by the mean of all tokens has a norm of its own, with or without the encoder's in the file.
    for left_out in ((), ("norm.weight", "norm.bias")):
        path, said = saved({"model": {k: v for k, v in encoder.items() if k not in left_out}}, tmp_path), []
        model = build(path, global_pool="avg", tell=said.append)
        assert_from(model, encoder, (*HEAD, "fc_norm.weight", "fc_norm.bias"))
        assert torch.equal(model.state_dict()["fc_norm.weight"], torch.ones(32))
        assert ("not used: norm (2)" in said[0]) is not left_out or left_out
    # What was finetuned that way keeps its norm.
    finetuned = trained(global_pool="avg")
    assert_from(build(saved(finetuned, tmp_path), global_pool="avg"), finetuned)
    with pytest.raises(InputError, match=r"2 of its 32 .*: norm\.weight, norm\.bias; .* fc_norm\.weight"):
        build(saved(finetuned, tmp_path))


CLIP = "vit_base_patch16_clip_224.openai"


def openai(state: State) -> State:
    """timm's names and shapes of a CLIP image tower as OpenAI's, with a text tower beside it."""
    swaps = (
        ("patch_embed.proj", "conv1"), ("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre"),
        ("norm1", "ln_1"), ("norm2", "ln_2"), ("norm.", "ln_post."), ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
        ("pos_embed", "positional_embedding"), ("cls_token", "class_embedding"),
    )  # fmt: skip
    result = {}
    for key, value in state.items():
        if key in HEAD:
            continue
        for ours, theirs in swaps:
            key = key.replace(ours, theirs)
        result[f"visual.{key}"] = value[0] if key == "positional_embedding" else value
    result["visual.class_embedding"] = result["visual.class_embedding"][0, 0]
    text = {"token_embedding.weight": torch.rand(9, 8), "logit_scale": torch.tensor(1.0)}
    # As many as the data's classes: a projection is no classifier all the same.
    return {**result, "visual.proj": torch.rand(32, 5), **text}


def test_clip(tmp_path: Path) -> None:
    state, said = trained(name=CLIP), []
    assert "norm_pre.weight" in state
    path = saved(openai(state), tmp_path)
    torch.manual_seed(7)
    fresh = build(name=CLIP).state_dict()["head.weight"]
    torch.manual_seed(7)
    model = build(path, CLIP, tell=said.append)
    assert_from(model, state, HEAD)
    assert torch.equal(model.state_dict()["head.weight"], fresh)
    assert "not used: token_embedding, logit_scale" in said[0]
    # Tower of open_clip that is timm's own, and timm's own file without a head.
    body = {key: value for key, value in state.items() if key not in HEAD}
    trunk = {f"visual.trunk.{key}": value for key, value in body.items()} | {
        "visual.head.proj.weight": torch.rand(5, 32)
    }
    assert_from(build(saved(trunk, tmp_path), CLIP), state, HEAD)
    assert_from(build(saved(body, tmp_path), CLIP), state, HEAD)


def test_dino(tmp_path: Path) -> None:
    """The teacher of a training, with a projection head that is no classifier; DINOv2's registers and mask token."""
    state = trained()
    body = {key: value for key, value in state.items() if key not in HEAD}
    teacher = {f"module.backbone.{key}": value for key, value in body.items()}
    content = {"teacher": {**teacher, "module.head.mlp.0.weight": torch.rand(4, 32)}, "student": {"x": torch.rand(1)}}
    said: list[str] = []
    assert_from(build(saved(content, tmp_path), tell=said.append), state, HEAD)
    assert "new: head.weight, head.bias; not used: head" in said[0]

    name = "vit_small_patch14_reg4_dinov2"
    state, said = trained(name=name), []
    body = {key: value for key, value in state.items() if key not in HEAD}
    position = torch.rand(1, 1, 32)  # theirs has one for the class token, which timm adds to it
    theirs = {
        **body, "mask_token": torch.rand(1, 32), "register_tokens": body.pop("reg_token"),
        "cls_token": body["cls_token"] - position, "pos_embed": torch.cat((position, body["pos_embed"]), 1),
    }  # fmt: skip
    del theirs["reg_token"]
    model = build(saved(theirs, tmp_path), name, tell=said.append)
    torch.testing.assert_close(model.state_dict()["cls_token"], state["cls_token"])
    assert_from(model, state, (*HEAD, "cls_token"))
    assert said[0].endswith("not used: mask_token")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "fewer blocks than the file": ({"depth": 1}, r"the file has weights that it has not: blocks\.1\.norm1\.weight"),
    "more blocks than the file": ({"depth": 3}, r"12 of its 44 weights are not in the file: blocks\.2\.norm1\.weight"),
    "another width": ({"embed_dim": 48}, r"in the file cls_token is \(1, 1, 32\), not \(1, 1, 48\)"),
    "no biases": ({"qkv_bias": False}, r"the file has weights that it has not: blocks\.0\.attn\.qkv\.bias"),
    "layer scales, as DeiT-III has": ({"init_values": 1e-4}, r"4 of its 36 .*: blocks\.0\.ls1\.gamma"),
    "another family": ({"name": "resnet10t"}, r"of its \d+ weights are not in the file: conv1.*; the file .*cls_token"),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_of_another_backbone_are_an_error_with_names(case: str, tmp_path: Path) -> None:
    """timm would load what fits and start the rest at random."""
    kwargs, message = WRONG[case]
    with pytest.raises(InputError, match=rf"model\.weights = '.*weights\.pth' does not fit|{message}") as caught:
        build(saved(trained(), tmp_path), **kwargs)
    assert re.search(message, str(caught.value)) and "as model.kwargs make it" in str(caught.value)


@pytest.mark.parametrize("content", [{"net.blocks.0.norm1.weight": torch.rand(32)}, {"model": {}}, {"epoch": 3}, {}])
def test_a_file_that_gives_nothing_is_an_error(content: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(holds no weights by name|32 of its 32|30 of its 32 weights are not in)"):
        build(saved(content, tmp_path))


def test_weights_that_lack_one_of_the_backbone_are_an_error(tmp_path: Path) -> None:
    state = trained()
    del state["blocks.1.mlp.fc2.bias"]
    with pytest.raises(InputError, match=r"1 of its 32 weights are not in the file: blocks\.1\.mlp\.fc2\.bias"):
        build(saved(state, tmp_path))


def test_a_mistake_in_kwargs_is_not_blamed_on_the_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^model\.kwargs: .*embed_dims"):
        build(saved(trained(), tmp_path), embed_dims=3)


def test_a_file_that_timm_fails_at_is_not_blamed_on_the_network(tmp_path: Path) -> None:
    """What helps is another model.name: the file is here."""
    wrong = {**trained(), "patch_embed.proj.weight": torch.rand(32, 7)}  # a flat one, and not of 8 x 8 px
    with pytest.raises(InputError, match=r"shape .* is invalid .* another architecture: see model\.name") as caught:
        build(saved(wrong, tmp_path))
    assert "network" not in str(caught.value)


def scales(start: Any, name: str = "vit_tiny_patch16_224", **data: Any) -> list[str]:
    """What is told but for what was loaded."""
    said: list[str] = []
    wanted = recipe(start, name)
    create_model(wanted.model_copy(update={"data": wanted.data.model_copy(update=data)}), 5, said.append)
    return [line for line in said if "mean" in line]


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_weights_of_images_normalised_otherwise_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finetuning would start from weights that see colours they were not trained on, and end somewhat worse."""
    path, resnet = saved(trained(), tmp_path), saved(trained(name="resnet10t"), tmp_path, "resnet.pth")
    assert scales(path) == scales(resnet, "resnet10t", **IMAGENET) == []
    (line,) = scales(path, **IMAGENET)
    assert line == (
        f"model.weights = '{path}': timm's published weights of vit_tiny_patch16_224 go with data.mean = "
        "[0.5, 0.5, 0.5], data.std = [0.5, 0.5, 0.5]; this recipe has [0.485, 0.456, 0.406] and [0.229, 0.224, 0.225]"
    )
    (line,) = scales(resnet, "resnet10t", mean=IMAGENET["mean"])
    assert line.endswith("[0.229, 0.224, 0.225]; this recipe has [0.485, 0.456, 0.406] and [0.5, 0.5, 0.5]")
    assert scales(resnet, "resnet10t", channels=1) == [], "published figures are those of colours"
    assert scales(None, "resnet10t") == []
    # timm's weights on the hub say by their own name which they are.
    hub(tmp_path, monkeypatch)
    saved(trained(), tmp_path, "model.safetensors")
    assert scales("hf-hub:owner/vit_tiny_patch16_224.nobody") == scales("hf-hub:timm/vit_tiny_patch16_224.nobody") == []
    (line,) = scales("hf-hub:timm/deit_tiny_patch16_224.fb_in1k@v1")
    assert "published weights of deit_tiny_patch16_224.fb_in1k go with data.mean = [0.485" in line


def test_a_run_says_itself_how_its_images_were_normalised(tmp_path: Path) -> None:
    run, wanted = tmp_path / "run", recipe(name="resnet10t")
    RunFolder(run).create(wanted, list("abcde"), ["masksub"])
    checkpoint.save(run / "checkpoints", 1, {"model": trained(name="resnet10t")}, {}, 2)
    assert scales(run, "resnet10t") == [], "timm's are of other weights"
    (line,) = scales(run, "resnet10t", **IMAGENET)
    assert "the run was trained with data.mean = [0.5, 0.5, 0.5]" in line
    (run / "recipe.yaml").write_text("of: another version\n", encoding="utf-8")
    assert scales(run, "resnet10t", **IMAGENET) == []


def test_position_embeddings_are_resized_and_the_class_token_keeps_its_own(tmp_path: Path) -> None:
    state = trained(size=48)  # 6 x 6 patches
    model = build(saved(state, tmp_path), size=64)  # 8 x 8
    found, before = model.state_dict()["pos_embed"], state["pos_embed"]
    assert found.shape == (1, 65, 32)
    assert torch.equal(found[:, :1], before[:, :1])
    assert torch.equal(found, resample_abs_pos_embed(before, [8, 8], [6, 6], num_prefix_tokens=1))
    # By torch alone: rows and columns are not swapped, tokens not shifted.
    grid = before[:, 1:].transpose(1, 2).reshape(1, 32, 6, 6)
    grid = nn.functional.interpolate(grid, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(found[:, 1:], grid.flatten(2).transpose(1, 2))
    assert_from(model, state, ("pos_embed",))


def test_a_run_is_finetuned_at_another_size(tmp_path: Path) -> None:
    """Its last whole checkpoint is taken, the moving average where there is one."""
    run = tmp_path / "run"
    state, average = trained(size=48), trained(size=48, classes=5)
    average = {key: value / 2 for key, value in average.items()}
    RunFolder(run).create(recipe(size=48), list("abcde"), ["masksub"])
    with pytest.raises(InputError, match=r"checkpoints holds no whole checkpoint"):
        build(run, size=64)
    checkpoint.save(run / "checkpoints", 1, {"model": state}, {}, 2)
    assert_from(build(run, size=48), state)
    checkpoint.save(run / "checkpoints", 2, {"model": state, "ema": average}, {}, 2)
    assert_from(build(run, size=64, classes=9), average, ("pos_embed", *HEAD))
    damaged = run / "checkpoints" / "update-00000002" / "ema.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    said: list[str] = []
    assert_from(build(run, size=48, tell=said.append), state)
    assert "update-00000002 is refused" in said[0]
    with pytest.raises(InputError, match=r"is not a run folder"):
        build(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")  # timm's own resizing
def test_relative_position_tables_of_swin(tmp_path: Path) -> None:
    """Another image size leaves them as they are; another window resizes them about their middle."""
    name = "swin_tiny_patch4_window7_224"
    state = trained(name=name, size=16)
    path = saved(state, tmp_path)
    assert_from(build(path, name, size=32), state)
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    found = build(path, name, size=32, window_size=8).state_dict()[key]
    assert found.shape == (15 * 15, 2)
    torch.testing.assert_close(found[15 * 15 // 2], state[key][7 * 7 // 2])  # distance 0 stays distance 0
    for corner in (0, -1):
        torch.testing.assert_close(found[corner], state[key][corner])


def test_grey_and_coloured_images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A colour model takes grey images by the sum of its filters, and the other way; timm remarks nothing untrue."""
    colour, key = trained(), "patch_embed.proj.weight"
    model = build(saved(colour, tmp_path), channels=1)
    torch.testing.assert_close(model.state_dict()[key], colour[key].sum(1, keepdim=True))
    grey = trained(channels=1)
    assert_from(build(saved(grey, tmp_path), channels=1), grey)
    # A grey image says the same to a model of three channels as to that of one.
    coloured = build(saved(grey, tmp_path), channels=3).state_dict()[key]
    torch.testing.assert_close(coloured.sum(1, keepdim=True), grey[key])
    assert capfd.readouterr().err == ""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of the folder "served", and an empty cache."""
    served = tmp_path / "served"
    for folder in ("a", "b"):
        (served / folder).mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_address_is_fetched_once_and_names_alike_are_not_confused(address: str, tmp_path: Path) -> None:
    one, two = trained(), {key: value + 1 for key, value in trained().items()}
    saved(one, tmp_path / "served/a"), saved(two, tmp_path / "served/b")
    assert_from(build(f"{address}/a/weights.pth"), one)
    assert_from(build(f"{address}/b/weights.pth?download=1"), two)
    shutil.rmtree(tmp_path / "served/a")
    assert_from(build(f"{address}/a/weights.pth"), one)


def test_a_download_that_was_cut_short_does_not_stay(address: str, tmp_path: Path) -> None:
    path = saved(trained(), tmp_path / "served/a")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(InputError, match=r"can't be read as weights"):
        build(f"{address}/a/weights.pth")
    path.write_bytes(whole)
    assert_from(build(f"{address}/a/weights.pth"), trained())


def test_an_archive_that_was_cut_short_does_not_stay(address: str, tmp_path: Path) -> None:
    """But one that is whole and fits another model does: fetching it again would change nothing."""
    path = jax_archive(trained(), tmp_path / "served/a/w.npz")
    whole = path.read_bytes()
    altered = bytearray(whole)
    altered[2000] ^= 255
    for content in (whole[:-1000], bytes(altered), b"not found"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"w\.npz can't be read as a numpy archive"):
            build(f"{address}/a/w.npz")
        assert not list((tmp_path / "cache").rglob("*.npz"))
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"w\.npz can't be read as a numpy archive"):
        build(f"{address}/a/w.npz", depth=3)
    path.unlink()
    assert_from(build(f"{address}/a/w.npz"), trained())
    local = tmp_path / "own.npz"
    local.write_bytes(whole[:-1000])
    with pytest.raises(InputError, match=r"own\.npz can't be read"):
        build(local)
    assert local.exists(), "a file of the user's is not removed"


def test_what_can_t_be_fetched_is_an_error_with_the_way_out(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, message in (
        (f"{address}/a/absent.pth", "404"),
        ("http://127.0.0.1:9/weights.pth", "refused"),
        (f"{address}/", "does not end in the name of a file"),
        (f"{address}/a b.pth", "control characters|can't contain"),
    ):
        with pytest.raises(InputError, match=rf"model\.weights = '{wrong}'.*({message})") as caught:
            build(wrong)
        assert "path as model.weights" in str(caught.value) or "name of a file" in message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_in_a_file_is_executed(address: str, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    path = saved({"model": {**trained(), "x": Hostile(harm)}}, tmp_path / "served/a")
    for start in (path, f"{address}/a/weights.pth"):
        with pytest.raises(InputError, match="a pickle that holds more than weights"):
            build(start)
    archive = tmp_path / "w.npz"
    np.savez(archive, **{"embedding/kernel": np.array([Hostile(harm)], dtype=object)})
    with pytest.raises(InputError, match=r"w\.npz can't be read as a numpy archive"):
        build(archive)
    assert not harm.exists()


def hub(folder: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool = True) -> list[tuple[Any, ...]]:
    """The hub's download, answered from a folder; returns what was asked."""
    asked: list[tuple[Any, ...]] = []

    def download(repository: str, file: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append((repository, file, revision, local_files_only))
        if (folder / file).exists():
            return str(folder / file)
        raise EntryNotFoundError("no such file") if reachable else LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("reachable", [True, False])
def test_a_name_on_the_hub(file: str, reachable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from the cache alone, when there is no network."""
    asked = hub(tmp_path, monkeypatch, reachable)
    state = trained()
    saved(state, tmp_path, file)
    assert_from(build("hf-hub:owner/name@v1"), state)
    assert asked[0] == ("owner/name", "model.safetensors", "v1", False)
    assert asked[-1][1] == file and all(offline is not reachable for *_, offline in asked[1:])
    assert_from(build("hf_hub:owner/name"), state)


def test_a_wrong_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"owner/name has none of model\.safetensors"):
        build("hf-hub:owner/name")
    hub(tmp_path, monkeypatch, reachable=False)
    with pytest.raises(InputError, match=r"owner/name is not in its cache.*give its path as model\.weights"):
        build("hf-hub:owner/name")
    with pytest.raises(InputError, match=r"'name' is no name on the hub; it is OWNER/NAME"):
        build("hf-hub:name")


def test_timm_s_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "pretrained" is judged as any other file, and without a network the way out is told."""
    state = trained(classes=1000)
    loader = "timm.models._builder.load_state_dict_from_hf"
    monkeypatch.setattr(loader, lambda *_, **__: dict(state))
    said: list[str] = []
    assert_from(build("pretrained", tell=said.append), state, HEAD)
    assert "30 of the model's 32 weights; new: head.weight, head.bias" in said[0]
    assert_from(build("pretrained", classes=1000), state)
    monkeypatch.setattr(loader, lambda *_, **__: {k: v for k, v in state.items() if not k.startswith("blocks.1")})
    with pytest.raises(InputError, match=r"12 of its 32 weights are not in the file: blocks\.1\.norm1"):
        build("pretrained")

    def offline(*_: Any, **__: Any) -> State:
        raise LocalEntryNotFoundError("check your connection.")

    monkeypatch.setattr(loader, offline)
    with pytest.raises(
        InputError, match=r"'pretrained' can't be loaded .*connection\. Without a network, give a local"
    ):
        build("pretrained")


def jax_archive(state: State, path: Path) -> Path:
    """A ViT's weights in the layout of the JAX originals."""
    width, heads = 32, 2

    def kernel(weight: Tensor) -> np.ndarray[Any, Any]:
        return weight.T.numpy()

    arrays: dict[str, Any] = {
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0).numpy(),
        "embedding/bias": state["patch_embed.proj.bias"].numpy(),
        "cls": state["cls_token"].numpy(),
        "Transformer/posembed_input/pos_embedding": state["pos_embed"].numpy(),
        "Transformer/encoder_norm/scale": state["norm.weight"].numpy(),
        "Transformer/encoder_norm/bias": state["norm.bias"].numpy(),
        "head/kernel": kernel(state["head.weight"]),
        "head/bias": state["head.bias"].numpy(),
    }
    for block in range(2):
        ours, theirs = f"blocks.{block}.", f"Transformer/encoderblock_{block}/"
        attention = theirs + "MultiHeadDotProductAttention_1/"
        for at, part in enumerate(("query", "key", "value")):
            rows = slice(at * width, (at + 1) * width)
            weight = state[f"{ours}attn.qkv.weight"][rows]
            arrays[f"{attention}{part}/kernel"] = kernel(weight).reshape(width, heads, -1)
            arrays[f"{attention}{part}/bias"] = state[f"{ours}attn.qkv.bias"][rows].reshape(heads, -1).numpy()
        arrays[f"{attention}out/kernel"] = kernel(state[f"{ours}attn.proj.weight"]).reshape(heads, -1, width)
        arrays[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"].numpy()
        for at, name in ((0, "norm1"), (2, "norm2")):
            arrays[f"{theirs}LayerNorm_{at}/scale"] = state[f"{ours}{name}.weight"].numpy()
            arrays[f"{theirs}LayerNorm_{at}/bias"] = state[f"{ours}{name}.bias"].numpy()
        for at in (0, 1):
            arrays[f"{theirs}MlpBlock_3/Dense_{at}/kernel"] = kernel(state[f"{ours}mlp.fc{at + 1}.weight"])
            arrays[f"{theirs}MlpBlock_3/Dense_{at}/bias"] = state[f"{ours}mlp.fc{at + 1}.bias"].numpy()
    np.savez(path, **arrays)
    return path


def test_numpy_archives_of_the_jax_originals(tmp_path: Path) -> None:
    state = trained()
    path = jax_archive(state, tmp_path / "w.npz")
    assert_from(build(path), state)
    said: list[str] = []
    torch.manual_seed(7)
    fresh = build(classes=9).state_dict()["head.weight"]
    torch.manual_seed(7)
    other = build(path, classes=9, tell=said.append)
    assert_from(other, state, HEAD)
    assert torch.equal(other.state_dict()["head.weight"], fresh)
    assert said[0].endswith("30 of the model's 32 weights; new: head.weight, head.bias")
    with pytest.raises(InputError, match=r"w\.npz can't be read as a numpy archive"):
        build(path, depth=3)
    with pytest.raises(InputError, match=r"resnet10t can't read numpy archives"):
        build(path, "resnet10t")


def test_loading_is_put_back_after_an_error(tmp_path: Path) -> None:
    """While timm loads, nn.Module.load_state_dict is ours; it must not stay so."""
    before = nn.Module.load_state_dict
    with pytest.raises(InputError):
        build(saved(trained(depth=3), tmp_path))
    build(saved(trained(), tmp_path))
    assert nn.Module.load_state_dict is before
    assert weights.__all__ == ["create_with_weights"]


def test_the_default_recipe_needs_no_weights() -> None:
    said: list[str] = []
    create_model(load_recipe("digits/vit_micro"), 10, said.append)
    assert said == []
