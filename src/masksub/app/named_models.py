"""Models by name, with random weights, and a batch for each: timm's, torchvision's, transformers'."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError

__all__ = ["build_named", "did_you_mean"]

Example = Tensor | Mapping[str, Tensor]


def build_named(name: str, *, image_size: int | None = None, batch: int = 8) -> tuple[nn.Module, Example]:
    """A model with random weights and a random batch; nothing is downloaded.

    Args:
        name: a timm model; "torchvision:NAME"; "hf:ARCHITECTURE" or "hf:MODEL_TYPE" with the configuration that
            transformers has by default, or "hf:FOLDER" with the folder's config.json.
        image_size: side in pixels; None for the model's own.
        batch: inputs in the batch.

    Raises:
        InputError: no such model, or not for this image size.
        ModuleNotFoundError: the library is not installed.
    """
    source, _, rest = name.rpartition(":")
    if source == "torchvision":
        return _torchvision(rest, image_size, batch)
    if source == "hf":
        return _transformers(rest, image_size, batch)
    if source not in ("", "timm"):
        raise InputError(f"model = {name!r}: a timm name, torchvision:NAME or hf:ARCHITECTURE")
    return _timm(rest, image_size, batch)


def _timm(name: str, image_size: int | None, batch: int) -> tuple[nn.Module, Example]:
    import timm

    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    try:
        try:
            model = timm.create_model(name, **({} if image_size is None else {"img_size": image_size}))
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            model = timm.create_model(name)  # convolutional nets take any size
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise InputError(f"timm can't build {name} at {image_size} px: {error}") from error
    channels, height, width = timm.data.resolve_model_data_config(model)["input_size"]
    if image_size is not None:
        height = width = image_size
    return model, torch.randn(batch, channels, height, width)


def _torchvision(name: str, image_size: int | None, batch: int) -> tuple[nn.Module, Example]:
    import torchvision.models as models

    names = models.list_models(module=models)
    if name not in names:
        raise _unknown("torchvision", name, names)
    weights = models.get_model_weights(name)
    size = image_size or int(next(iter(weights)).transforms().crop_size[0])
    try:
        model = models.get_model(name, weights=None, **({"image_size": size} if name.startswith("vit_") else {}))
    except (TypeError, ValueError) as error:
        raise InputError(f"torchvision can't build {name} at {size} px: {error}") from error
    return model, torch.randn(batch, 3, size, size)


def _transformers(name: str, image_size: int | None, batch: int) -> tuple[nn.Module, Example]:
    import transformers

    if name and Path(name).is_dir():
        if not Path(name, "config.json").is_file():
            raise InputError(f"hf:{name}: the folder has no config.json")
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=True)
        wanted = getattr(transformers, (config.architectures or [""])[0], None)
    else:
        wanted = getattr(transformers, name, None)
        if wanted is None and name in transformers.CONFIG_MAPPING:
            wanted = _classifier_of(transformers.CONFIG_MAPPING[name])
        if not (isinstance(wanted, type) and issubclass(wanted, nn.Module)):
            known = [
                n for n in dir(transformers) if n.endswith(("ForImageClassification", "ForSequenceClassification"))
            ]
            raise _unknown("transformers", name, [*known, *transformers.CONFIG_MAPPING])
        config = getattr(wanted, "config_class", dict)()
    if wanted is None:
        raise InputError(f"{name}: its config.json names no architecture that transformers has")
    if image_size is not None:
        for part in (config, getattr(config, "vision_config", config)):
            if hasattr(part, "image_size"):
                part.image_size = image_size
    model = wanted(config)
    return model, _batch_for(model, config, image_size, batch)


def _classifier_of(config: type) -> Any:
    """The image, text or audio classifier of a configuration."""
    import transformers.models.auto.modeling_auto as auto

    for mapping in (
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    ):
        if config in mapping:
            found = mapping[config]
            return found[0] if isinstance(found, tuple) else found
    return None


def _batch_for(model: nn.Module, config: Any, image_size: int | None, batch: int) -> Example:
    name = getattr(model, "main_input_name", "")
    if name == "input_ids":
        length = min(128, int(getattr(config, "max_position_embeddings", 128)) - 2)
        ids = torch.randint(min(1000, config.vocab_size // 2), config.vocab_size, (batch, length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "input_values" and hasattr(config, "num_mel_bins"):
        return {name: torch.randn(batch, config.max_length, config.num_mel_bins)}
    vision = getattr(config, "vision_config", config)
    if name == "pixel_values":
        size: Any = image_size or getattr(vision, "image_size", 224)
        sides = (size, size) if isinstance(size, int) else size
        return {name: torch.randn(batch, getattr(vision, "num_channels", 3), *sides)}
    raise InputError(
        f"{type(model).__name__} takes {name or 'unknown inputs'}: masksub masks images, texts, spectrograms"
    )


def _unknown(library: str, name: str, names: list[str]) -> InputError:
    return InputError(f"{library} has no model {name!r}{did_you_mean(name, names)}")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown model: up to three names like it, or that begin like it; perhaps none."""

    def likeness(known: str) -> float:
        both = (difflib.SequenceMatcher(None, part, name).ratio() for part in (known, known[: len(name)]))
        return max(both)

    ranked = sorted((-likeness(known), len(known), known) for known in names)[:3]
    near = [known for unlike, _, known in ranked if -unlike >= 0.6]
    return f"; did you mean {', '.join(near)}?" if near else ""
