"""Why a model is masked in pixels. If it fails, a user is not told why nothing better was done."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import timm
import torch
from torch import nn

from masksub.adapters.pixels import _REASONS, _UNKNOWN, PixelBlocks
from masksub.core.adapter import find_adapter

NAMED = [
    (place, name) for libraries in _REASONS.values() for place, names in libraries.items() for name in names.split()
]


def on_meta(name: str) -> nn.Module:
    """A timm model without weights."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # some of timm's classes warn of what torch will drop
        model: nn.Module = timm.create_model(name)
        return model


@pytest.mark.parametrize("module", timm.list_modules())
def test_each_module_of_timm_has_an_adapter_or_a_reason(module: str) -> None:
    """By the class of its first model: one module's models share a class, or a base class."""
    name = timm.list_models(module=module)[0]
    model = on_meta(name)
    adapter = find_adapter(model)
    reason = adapter.why(model)
    assert reason and reason != _UNKNOWN, f"{name}, a {type(model).__module__}.{type(model).__name__}"
    assert isinstance(adapter, PixelBlocks) == (adapter.how == "pixels")


def test_no_reason_names_a_module_that_does_not_exist() -> None:
    """In the versions that are installed here, the newest that masksub is tested with."""
    missing = []
    for place, name in NAMED:
        pytest.importorskip(place)
        if importlib.util.find_spec(f"{place}.{name}") is None:
            missing.append(f"{place}.{name}")
    assert missing == [] and len(NAMED) > 90


def test_no_module_has_two_reasons() -> None:
    assert len(set(NAMED)) == len(NAMED)


def test_each_classifier_of_torchvision_has_an_adapter_or_a_reason() -> None:
    import torchvision

    seen = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        builder = torchvision.models.get_model_builder(name)
        if builder.__module__ in seen or "regnet" in name:  # regnet computes its widths with tensors, below
            continue
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        with torch.device("meta"):
            model = builder(weights=None, **options)
        seen[builder.__module__] = find_adapter(model).why(model)
    regnet = torchvision.models.regnet_y_400mf()
    seen["regnet"] = find_adapter(regnet).why(regnet)
    assert len(seen) == 17 and _UNKNOWN not in seen.values(), seen


def test_reasons_follow_the_base_class_and_say_when_nothing_is_known() -> None:
    from timm.models.resnet import BasicBlock, ResNet

    class Own(ResNet):
        pass

    adapter = PixelBlocks()
    assert "convolutions" in adapter.why(Own(BasicBlock, [1, 1, 1, 1], channels=(8, 8, 8, 8)))
    assert "masksub.register" in adapter.why(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))


@pytest.mark.parametrize(("module", "kind"), [("convnext", "ConvNext"), ("resnet", "ResNet")])
def test_convolutional_models_of_transformers_have_a_reason(module: str, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1]}
    extra = {"num_stages": 2} if module == "convnext" else {"embedding_size": 8}
    config = getattr(transformers, f"{kind}Config")(**sizes, **extra)
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    assert find_adapter(model).how == "pixels"
    assert "convolutions" in find_adapter(model).why(model)
