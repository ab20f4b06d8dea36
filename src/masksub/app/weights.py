"""Weights to start from: found, fetched, read safely, given to timm, and checked for what was really loaded.

Whatever they come from, they end in a local file that ``checkpoint.read_weights`` reads, which executes nothing; timm
gets tensors, converts their names and resizes position embeddings and tables to the model's image size. timm then
loads what fits and leaves the rest as it was, so this module compares names: only a head, and the norm before it, may
be new.
"""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from .checkpoint import latest, read_weights
from .errors import InputError
from .fetch import HUB_PREFIXES, fetch_address, fetch_hub
from .pixel_scale import other_pixel_scale
from .runs import RunFolder
from .settings import Data
from .weights_numpy import load_numpy

__all__ = ["create_with_weights"]

Tell = Callable[[str], None]
_Loader = Callable[..., Any]

_ADDRESS = ("https://", "http://")
# Where training scripts put the weights among other things; a moving average first, as in timm. "teacher" is DINO's,
# "encoder" I-JEPA's.
_HOLDERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model", "encoder")
# With MAE's finetuning the mean of all tokens is normalised by a norm that pretraining did not have.
_NEW_BESIDE_HEAD = "fc_norm."


def create_with_weights(
    build: Callable[..., nn.Module], name: str, weights: str, num_classes: int, data: Data, tell: Tell | None = None
) -> nn.Module:
    """A timm model that starts from given weights.

    Args:
        build: calls ``timm.create_model(name, ...)`` with these further keyword arguments.
        name: timm's name of the model.
        weights: as the recipe's ``model.weights``.
        num_classes: the data's classes; a head of as many is loaded, any other is made anew.
        data: the recipe's; its mean and standard deviation are compared with those that belong to the weights.
        tell: gets one line on what was loaded, what is new and what was left out; one if the weights go with another
            mean or standard deviation; and each damaged checkpoint of a run.

    Returns:
        The model. What did not come from the file has the initial values that ``build`` gave it.

    Raises:
        InputError: not found, not fetched, unsafe, damaged, or not this model's weights.
    """
    tell = tell or (lambda line: None)
    path, fetched = None, weights.startswith(_ADDRESS)
    try:
        if weights == "pretrained":
            with _observed(name) as loads:
                model = build(pretrained=True)
        else:
            path = _find(weights, tell)
            if path.suffix == ".npz":
                model = build()
                own, given = load_numpy(model, path, name, fetched)
                loads = [_judge(own, given, _heads(name), name, str(path))]
            else:
                model, loads = _build_from(build, name, path, num_classes, fetched)
    except InputError as error:
        raise InputError(f"model.weights = {weights!r}: {error}") from error
    except Exception as error:
        build()  # if the arguments are at fault and not the weights, this says so
        if path is None:
            advice = "Without a network, give a local file: the path of a .safetensors, .pth or .bin file"
        else:
            advice = "These are probably weights of another architecture: see model.name and model.kwargs"
        raise InputError(
            f"model.weights = {weights!r} can't be loaded into {name}: {str(error).rstrip('. ')}. {advice}"
        ) from error
    if loads:
        tell(f"model.weights = {weights!r}: {loads[-1].note()}")
    if line := other_pixel_scale(name, weights, data):
        tell(line)
    return model


def _find(weights: str, tell: Tell) -> Path:
    """The local file that weights by this name are in."""
    if weights.startswith(HUB_PREFIXES):
        return fetch_hub(weights.partition(":")[2])
    if weights.startswith(_ADDRESS):
        return fetch_address(weights)
    path = Path(weights)
    if path.is_dir():
        folder = RunFolder.existing(path).checkpoints
        last = latest(folder, tell)
        if last is None:
            raise InputError(f"{folder} holds no whole checkpoint")
        return last.weights
    if not path.is_file():
        raise InputError(
            "there is no such file; accepted are 'pretrained', a .safetensors, .pth, .bin or .npz file, a run folder, "
            "hf-hub:OWNER/NAME, or an address that begins with https://"
        )
    return path


def _build_from(
    build: Callable[..., nn.Module], name: str, path: Path, num_classes: int, fetched: bool
) -> tuple[nn.Module, list[_Loaded]]:
    try:
        state, aside = _state(path)
    except InputError:
        if fetched:
            path.unlink(missing_ok=True)  # else a download that was cut short would stay in the cache for ever
        raise
    overlay: dict[str, Any] = {
        "state_dict": state,
        "source": "",  # else timm would look where this model's own weights are
        # The head is this module's business: as many classes as the model and no offset, so that timm leaves it alone.
        "num_classes": num_classes,
        "label_offset": 0,
    }
    first = _published(name, "first_conv")
    convolution = state.get(f"{first}.weight")
    if convolution is not None and convolution.ndim == 4 and convolution.shape[1] == 1:
        size = _published(name, "input_size") or (3, 224, 224)
        overlay["input_size"] = (1, *size[1:])  # else timm remarks that grey weights ought to be coloured
    # CLIP's projection and DINO's head are no classifiers: where there is none by that name, it is new.
    part = _heads(name)[0].split(".")[0]
    headless = not any(key.split(".")[0] == part for key in state)
    with _observed(name, str(path), headless, aside) as loads:
        model: Any = build(pretrained=True, pretrained_cfg_overlay=overlay)
    model.pretrained_cfg.pop("state_dict", None)  # timm would keep the tensors for as long as the model
    if not loads:
        raise InputError(f"timm took nothing of {path}")
    return model, loads


def _state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by name, under the names of the model itself, and the names that no image model has."""
    # timm's and MAE's training scripts save their arguments beside the weights: a plain holder of values.
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = read_weights(path)
    while holder := next((key for key in _HOLDERS if isinstance(state.get(key), dict)), None):
        state = state[holder]
    state = {key: value for key, value in clean_state_dict(state).items() if isinstance(value, Tensor)}
    if not state:
        raise InputError(f"{path} holds no weights by name")
    for prefix in ("backbone.", "model."):
        if 2 * sum(key.startswith(prefix) for key in state) > len(state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    aside = []
    if any(key.startswith("visual.") for key in state):  # CLIP: the other half is its text tower
        aside = [key for key in state if not key.startswith("visual.")]
    state = {key: value for key, value in state.items() if key not in aside}
    aside += [key for key in state if key == "mask_token"]  # timm recognises DINOv2 by it and removes it
    return state, aside


def _published(name: str, key: str) -> Any:
    """What timm says of a model's published weights; None for a model that has none."""
    return getattr(timm.get_pretrained_cfg(name), key, None)


def _heads(name: str) -> tuple[str, ...]:
    """Paths of a model's classifiers: two in a distilled model."""
    found = _published(name, "classifier") or "head"
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


class _Loaded(NamedTuple):
    """Names of the model's weights that a file gave and did not give, and of the file's that the model did not take."""

    given: list[str]
    new: list[str]
    unused: list[str]

    def note(self) -> str:
        """One line."""
        total = len(self.given) + len(self.new)
        parts = [f"{len(self.given)} of the model's {total} weights"]
        parts += [f"new: {', '.join(self.new)}"] * bool(self.new)
        parts += [f"not used: {_by_part(self.unused)}"] * bool(self.unused)
        return "; ".join(parts)


@contextlib.contextmanager
def _observed(
    name: str, place: str | None = None, headless: bool = False, aside: Iterable[str] = ()
) -> Iterator[list[_Loaded]]:
    """Inside, each load_state_dict takes what fits and is judged; timm's own one would be silent or all too strict.

    timm calls it on a model that no one else has seen yet, after it converted the names, so no hook can be set before.
    """
    loads: list[_Loaded] = []
    original: _Loader = nn.Module.load_state_dict

    def load(model: nn.Module, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        own, heads = model.state_dict(), _heads(name)
        state = {
            key: value
            for key, value in state.items()
            if not (_within(key, heads) and (headless or (key in own and own[key].shape != value.shape)))
        }
        judged = _judge(own, state, heads, name, place)
        judged.unused.extend(aside)
        loads.append(judged)
        return original(model, {key: state[key] for key in judged.given}, strict=False)

    nn.Module.load_state_dict = load  # type: ignore[method-assign, assignment]
    try:
        yield loads
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def _judge(
    own: dict[str, Tensor], state: dict[str, Tensor], heads: tuple[str, ...], name: str, place: str | None
) -> _Loaded:
    """What of the model is given, new and unused; place None for timm's own published file.

    Raises:
        InputError: more than the head would be new, a shape differs, or the file has weights of another backbone.
    """
    new = [key for key in own if key not in state]
    lacking = [
        key
        for key in new
        if own[key].is_floating_point() and not _within(key, heads) and not key.startswith(_NEW_BESIDE_HEAD)
    ]
    unused = [key for key in state if key not in own]
    # The file's weights of a part that the model has too, but without them: more blocks, biases, layer scales.
    # Without these the model would compute something else. Indices and counters are no weights.
    parts = {key.split(".")[0] for key in own} - {head.split(".")[0] for head in heads}
    foreign = [
        key
        for key in unused
        if place is not None  # of its own published files timm knows what they are good for
        and key.split(".")[0] in parts
        and state[key].is_floating_point()
        and state[key].numel() > 1
    ]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    reasons = [f"{len(lacking)} of its {len(own)} weights are not in the file: {_some(lacking)}"] * bool(lacking)
    reasons += [f"the file has weights that it has not: {_some(unused)}"] * bool(foreign or (lacking and unused))
    reasons += [f"in the file {_some(shapes)}"] * bool(shapes)
    if reasons:
        raise InputError(f"{place or 'the file'} does not fit {name} as model.kwargs make it: {'; '.join(reasons)}")
    return _Loaded([key for key in own if key in state], new, unused)


def _within(key: str, parts: tuple[str, ...]) -> bool:
    return key.startswith(tuple(f"{part}." for part in parts))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown


def _by_part(names: list[str]) -> str:
    """Names by their first part, with how many there are."""
    counted = Counter(name.split(".")[0] for name in names)
    return ", ".join(part if number == 1 else f"{part} ({number})" for part, number in counted.items())
