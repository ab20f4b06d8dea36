"""Sections model and loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .base import Settings

__all__ = ["Loss", "Model"]


class Model(Settings):
    """The network."""

    name: str
    """A timm model."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for it (patch_size, embed_dim, drop_path_rate, ...)."""
    weights: str | None = None
    """Weights to start from: "pretrained" for timm's own; a file (.safetensors, .pth, .bin, .npz); a run folder, for
    its last checkpoint; "hf-hub:OWNER/NAME" with or without "@REVISION"; or an http(s) address. A head of other classes
    is made anew; nothing else may be missing."""
    drop_path: Literal["linear", "uniform"] = "linear"
    """How model.kwargs.drop_path_rate is given to the blocks: rising linearly from 0 (timm), or the same to each (DeiT
    III)."""
    attention: Literal["auto", "fused", "unfused"] = "auto"
    """Attention of timm transformers; "auto" takes what is faster on this device and precision."""


class Loss(Settings):
    """The main branch's criterion."""

    name: Literal["ce", "bce"] = "ce"
    """"ce": cross-entropy; "bce": binary cross-entropy of each class."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing."""
    target_threshold: float | None = None
    """For "bce": soft targets above this count as 1, others as 0."""
