"""Agreement with an independent implementation. If it fails, this is not MaskSub any more."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import masksub
from tests.conftest import shared


def read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The metadata, and the tensors by group: io, weights, grads."""
    groups: dict[str, dict[str, Tensor]] = {"io": {}, "weights": {}, "grads": {}}
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
        for key in file.keys():  # noqa: SIM118, not a mapping
            group, name = key.split(".", 1)
            groups[group][name] = file.get_tensor(key)
    return meta, groups


def deit3(meta: dict[str, Any]) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    kwargs = dict(meta["kwargs"])
    return VisionTransformer(norm_layer=functools.partial(nn.LayerNorm, eps=kwargs.pop("norm_layer_eps")), **kwargs)


def resnet(meta: dict[str, Any]) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, **meta["kwargs"])


def swin(meta: dict[str, Any]) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    # The file has no random part; the class drops paths at 0.1 unless told otherwise.
    model = SwinTransformer(drop_path_rate=0.0, **meta["kwargs"])
    masksub.add_mask_token(model)
    return model


@pytest.mark.parametrize("mode", ["split", "joint"])
@pytest.mark.parametrize(("name", "build"), [("deit3_ce_r50", deit3), ("resnet_ce_r50", resnet), ("swin_ce_r50", swin)])
def test_logits_losses_and_gradients(name: str, build: Any, mode: Any) -> None:
    meta, data = read(shared(f"fixtures/parity/{name}.safetensors"))
    io, model = data["io"], build(meta).train()
    model.load_state_dict(data["weights"])
    unit = meta.get("mask_unit_px")
    fill: Any = "token" if hasattr(model, "mask_token") else 0.0
    step = masksub.TwoBranchStep(
        model,
        nn.CrossEntropyLoss(),
        sub=masksub.MaskSub(meta["ratio"], unit=unit, fill=fill),
        weight=meta["sub_weight"],
        mode=mode,
    )
    out = step(io["x"], io["y"], keep=io["keep"])
    torch.testing.assert_close(out.logits, io["main_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.sub_logits, io["sub_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.loss_main, io["loss_main"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.loss_sub, io["loss_sub"], atol=1e-5, rtol=0)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == data["grads"].keys()
    for key, expected in data["grads"].items():
        error = (parameters[key].grad - expected).norm() / expected.norm().clamp_min(1e-12)
        assert error < 1e-5, f"gradient of {key}: relative error {error:.1e}"
    after = {key.removeprefix("after."): value for key, value in io.items() if key.startswith("after.")}
    torch.testing.assert_close({key: model.state_dict()[key] for key in after}, after, atol=1e-5, rtol=0)
