"""What a recipe may say: every key, its type, its range and its default.

The classes are the one source for validation, for the JSON schema that editors use, and for the resolved
``recipe.yaml`` of a run folder.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from masksub.core.methods import METHODS
from masksub.core.schedule import Constant, Cosine, Linear, Schedule, Staged

__all__ = ["Recipe"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


Ratio = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Data(_Settings):
    """Where the images come from and how they are held."""

    name: str = "folder"
    """"digits" (embedded, no network), "folder" (class folders, also inside a .zip or .tar), or a name of timm's data
    layer: "torch/cifar10", "hfds/NAME"."""
    train: str | None = None
    """Folder or archive of class folders to train on, for "folder"."""
    val: str | None = None
    """Folder or archive of class folders to validate on, for "folder"."""
    val_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """In place of data.val: hold out this share of each class of the training images, the same ones for every seed."""
    root: str | None = None
    """Where timm's data layer keeps the set, for its names."""
    train_split: str = "train"
    """Split to train on, for timm's names."""
    val_split: str = "validation"
    """Split to validate on, for timm's names."""
    train_images: Annotated[int, Field(ge=1)] | None = None
    """Train on this many images only, chosen at random by the seed; None for all."""
    val_images: Annotated[int, Field(ge=1)] | None = None
    """Validate on this many images only; None for all."""
    image_size: Annotated[int, Field(ge=1)] = 224
    """Side of the square that the model sees, in pixels."""
    channels: Literal[1, 3] = 3
    """1: grey, 3: RGB."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, values 0 to 1; None: 0.5."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; None: 0.5."""
    cache: Literal["auto", "memory", "device", "none"] = "auto"
    """Hold decoded images in memory, or on the device, and augment in batches. "auto": in memory where they fit in
    cache_share and the augmentation allows it."""
    cache_share: Share = 0.25
    """Share of the free memory that held images may take."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Worker processes that decode images when they are not held."""
    on_error: Literal["stop", "skip"] = "stop"
    """A corrupt image: stop, naming the file, or skip it and count."""
    max_skipped: Annotated[int, Field(ge=0)] = 100
    """With on_error "skip": stop after this many."""


class Augment(_Settings):
    """What is done to a training image."""

    crop: Literal["none", "pad", "resized"] = "none"
    """"pad": random crop after padding by crop_padding; "resized": random area and aspect, resized."""
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Pixels of zero padding on each side, for crop "pad"."""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """Smallest and largest share of the area, for crop "resized"."""
    flip: Share = 0.0
    """Probability of a horizontal flip."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Strength of colour jitter; images are then not held decoded."""
    auto_augment: str | None = None
    """timm's name of an automatic augmentation ("rand-m9-mstd0.5-inc1", "3a"); images are then not held decoded."""
    random_erase: Share = 0.0
    """Probability of random erasing; images are then not held decoded."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup; 0 for none."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of cutmix; 0 for none."""
    test_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the side that the centre crop of evaluation keeps."""

    @property
    def per_image(self) -> bool:
        """Whether an operation needs the original image, so that decoded ones can't be held."""
        return self.crop == "resized" or self.color_jitter > 0 or bool(self.auto_augment) or self.random_erase > 0


class Model(_Settings):
    """The network."""

    name: str
    """A timm model."""
    kwargs: dict[str, Any] = {}
    """Keyword arguments for it (patch_size, embed_dim, drop_path_rate, ...)."""
    weights: str | None = None
    """Weights to start from: "pretrained" for timm's own, or a .safetensors or .pth file."""
    attention: Literal["auto", "fused", "unfused"] = "auto"
    """Attention of timm transformers; "auto" takes what is faster on this device and precision."""


class ConstantValue(_Settings):
    """One value throughout."""

    kind: Literal["constant"]
    value: float

    def schedule(self) -> Schedule:
        """The schedule."""
        return Constant(self.value)


class Ramp(_Settings):
    """From start to end."""

    kind: Literal["linear", "cosine"]
    start: float
    end: float

    def schedule(self) -> Schedule:
        """The schedule."""
        return (Linear if self.kind == "linear" else Cosine)(self.start, self.end)


class Stages(_Settings):
    """Constant stages: pairs (progress at which a stage begins, value)."""

    kind: Literal["staged"]
    stages: list[tuple[float, float]]

    @model_validator(mode="after")
    def _check(self) -> Stages:
        Staged(self.stages)
        return self

    def schedule(self) -> Schedule:
        """The schedule."""
        return Staged(self.stages)


OverTraining = Annotated[ConstantValue | Ramp | Stages, Field(discriminator="kind")]


class Sub(_Settings):
    """The sub branch."""

    ratio: Ratio | OverTraining = 0.5
    """Share of the units that is masked, 0 <= ratio < 1; or a schedule."""
    weight: Share | OverTraining = 0.5
    """Share of the sub branch in the loss, 0 <= weight <= 1; or a schedule."""
    unit: Annotated[int, Field(ge=1)] | None = None
    """Side in pixels of the square that is masked as one; None: a patch where tokens are dropped, else 32."""
    p: Ratio = 0.1
    """For dropsub, pathsub and cosub: rate of dropout or drop path, 0 <= p < 1."""
    efficient: bool = True
    """For pathsub and cosub: run each residual branch only on the images that keep it."""
    bn: Literal["shared", "main"] = "shared"
    """Running statistics of batch norm see both branches ("shared", the paper) or the main branch alone ("main")."""
    mode: Literal["split", "joint"] = "split"
    """"split": one branch after the other, memory of one; "joint": one loss, one backward."""

    @model_validator(mode="after")
    def _check(self) -> Sub:
        low, high = self.ratio_schedule.bounds
        if low < 0 or high >= 1:
            raise ValueError(f"ratio runs from {low} to {high}: it must satisfy 0 <= ratio < 1 all along")
        low, high = self.weight_schedule.bounds
        if low < 0 or high > 1:
            raise ValueError(f"weight runs from {low} to {high}: it must satisfy 0 <= weight <= 1 all along")
        return self

    @property
    def ratio_schedule(self) -> Schedule:
        """The ratio over training."""
        return Constant(self.ratio) if isinstance(self.ratio, float) else self.ratio.schedule()

    @property
    def weight_schedule(self) -> Schedule:
        """The weight over training."""
        return Constant(self.weight) if isinstance(self.weight, float) else self.weight.schedule()


class Loss(_Settings):
    """The main branch's criterion."""

    name: Literal["ce", "bce"] = "ce"
    """"ce": cross-entropy; "bce": binary cross-entropy of each class."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing."""
    target_threshold: float | None = None
    """For "bce": soft targets above this count as 1, others as 0."""


class Optim(_Settings):
    """The optimizer, by its name in timm, and its schedule over updates."""

    name: str = "adamw"
    """timm's name of the optimizer."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay; biases, norms and what the model exempts take none."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each layer to the one below."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; None for no clipping."""
    kwargs: dict[str, Any] = {}
    """More arguments of the optimizer (betas, eps, momentum)."""
    schedule: Literal["cosine", "constant", "poly", "step", "tanh"] = "cosine"
    """timm's name of the learning-rate schedule."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    """Epochs of linear warm-up, part of the training."""
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate at the first update of the warm-up."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate at the end."""


class Train(_Settings):
    """The loop."""

    epochs: Annotated[float, Field(gt=0)]
    """Passes over the training images; a fraction is allowed."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images of one forward on one device."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients make one update."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward; weights stay in fp32."""
    compile: bool = False
    """torch.compile the model."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; "auto" takes an accelerator if there is one."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the weights; None for none. The average is then what is evaluated."""
    log_every: Annotated[int, Field(ge=1)] = 50
    """Updates between two lines of metrics."""
    eval_every: Annotated[float, Field(gt=0)] = 1
    """Epochs between two evaluations; the last update is always evaluated."""
    eval_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images of one forward of the evaluation; None: batch_size."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Updates between two checkpoints; None: one an epoch."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    """Checkpoints that are kept; the last but one is what a damaged last one falls back to."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.jsonl."""


class Recipe(_Settings):
    """Everything that decides a training run."""

    method: Literal[
        "plain", "masksub", "direct-mask", "true-label-sub", "self-distill", "dropsub", "pathsub", "cosub"
    ] = "masksub"
    """What the training step does; see masksub.METHODS."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random."""
    data: Data = Data()
    augment: Augment = Augment()
    model: Model
    sub: Sub = Sub()
    loss: Loss = Loss()
    optim: Optim = Optim()
    train: Train

    def changed(self, section: str, **values: Any) -> Recipe:
        """A copy with other values in one section; they are not validated."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        assert self.method in METHODS
        mistakes = []
        if self.data.name == "folder" and self.data.train is None:
            mistakes.append('data.train is missing: data.name "folder" needs a folder or archive to train on')
        if self.data.name == "folder" and self.data.val is None and self.data.val_share is None:
            mistakes.append(
                'data.val is missing: data.name "folder" needs a folder or archive to validate on, or data.val_share '
                "to hold out a share of the training images"
            )
        if self.data.val_share is not None and (self.data.name != "folder" or self.data.val is not None):
            mistakes.append(
                f'data.val_share = {self.data.val_share}: only for data.name "folder", and in place of data.val'
            )
        for name, values in (("mean", self.data.mean), ("std", self.data.std)):
            if values is not None and len(values) != self.data.channels:
                mistakes.append(
                    f"data.{name} = {list(values)}: data.channels = {self.data.channels} needs as many numbers"
                )
        if self.data.std is not None and min(self.data.std, default=1) <= 0:
            mistakes.append(f"data.std = {list(self.data.std)}: each must be above 0")
        if self.method == "cosub" and self.sub.bn == "main":
            mistakes.append('sub.bn = "main": cosub has no main branch; use "shared"')
        if (self.augment.mixup or self.augment.cutmix) and self.train.batch_size % 2:
            mistakes.append(f"train.batch_size = {self.train.batch_size}: mixup and cutmix need an even number")
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self
