"""Every model family of timm, torchvision and transformers: how it is masked, what a step costs, and the contract.

    python -m benchmarks.zoo                       # what is not in the results yet; can be stopped at any time
    python -m benchmarks.zoo --only timm:xcit hf:  # rows whose name begins so, again if they are there already
    python -m benchmarks.zoo --render              # docs/models.md from the results

One model for each module of ``timm.models`` (the smallest one that it registers), each classifier of torchvision, and
each transformers family that masksub names (small random configurations). Each goes through ``tests/contract.py``,
which has a two-branch step in split and in joint mode, and is inspected for the operations of a step. Images are small
where the architecture allows.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import nn

from benchmarks.zoo_page import PAGE, RESULTS, render
from masksub.core.adapter import find_adapter
from masksub.core.call import Call
from masksub.core.copies import meta_copy
from masksub.core.filling import CellFill
from masksub.core.inspect import inspect
from tests.cases import hf_text, hf_vision
from tests.cases.case import CLASSES, Case, logits_of
from tests.contract import CHECKS

KEPT = ("family", "how", "where", "why", "units", "visible", "prefix", "flop_ratio", "drop_paths",
        "drop_paths_on_part", "warnings")  # fmt: skip
"""Of what ``inspect`` finds."""
OTHERS = {"metaformer, CAFormer": "caformer_s18", "twins, PCPVT": "twins_pcpvt_small"}
"""Second models of modules whose models are masked in more than one way."""
LARGE = 150_000_000
"""Parameters above which a model is shrunk to two blocks: the smallest DeepSeek encoder has 412 million."""
SIZES = (64, 96, 128, 160, 192, 224, 240, 256, 384)
"""Sides that are tried, in pixels, before the model's own."""


@dataclass(frozen=True)
class ZooCase(Case):
    """A model of a library as it is. Its weights get noise in proportion, so that deep ones stay finite."""

    def model(self) -> nn.Module:
        """As ``Case.model``. Initial weights are drawn once: of a large model that takes longer than a step."""
        if _LAST[:1] != [self]:
            _LAST[:] = [self, self._noisy()]
        return copy.deepcopy(_LAST[1])

    def _noisy(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.build()
        with torch.no_grad():
            for parameter in model.parameters():
                spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
                parameter.add_((0.1 * spread + (0.02 if spread == 0 else 0.0)) * torch.randn_like(parameter))
            # Statistics of a batch, as a trained model has some: without them the logits of a deep one vanish.
            norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.momentum = None
            logits_of(model.train(), self.inputs()[0])
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum
        return model


_LAST: list[Any] = []
"""The case that was asked for a model last, and its model."""


def timm_rows() -> Iterator[tuple[str, Callable[[], tuple[str, Case]]]]:
    for module in sorted(timm.list_modules()):
        if timm.list_models(module=module):
            yield f"timm:{module}", lambda module=module: _timm_case(module)  # type: ignore[misc]
    for module, name in OTHERS.items():
        yield f"timm:{module}", lambda name=name: _smallest([name])  # type: ignore[misc]


def _timm_case(module: str) -> tuple[str, Case]:
    sizes = {}
    for name in timm.list_models(module=module):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=CLASSES)
            if getattr(model, "num_classes", 0) == CLASSES:
                sizes[name] = sum(p.numel() for p in model.parameters())
        except (RuntimeError, NotImplementedError, AssertionError, TypeError):
            continue
    return _smallest(sorted(sizes, key=sizes.__getitem__)[:3], sizes)


def _smallest(names: Sequence[str], sizes: Mapping[str, int] = MappingProxyType({})) -> tuple[str, Case]:
    """The first of these models that goes, on the smallest image that it takes."""
    problem: Exception = RuntimeError("no model of the module builds on the meta device")
    for name in names:
        own = timm.get_pretrained_cfg_value(name, "input_size") or (3, 224, 224)
        for size in dict.fromkeys((*(s for s in SIZES if s < own[-1]), own[-1])):
            for arguments in ({"img_size": size}, {}):
                if sizes.get(name, 0) > LARGE:
                    arguments["depth"] = 2
                if "img_size" not in arguments and size != own[-1] and _takes_size(name):
                    continue
                build = lambda n=name, a=arguments: timm.create_model(n, num_classes=CLASSES, **a)  # type: ignore[misc] # noqa: E731
                try:
                    shown = f"{name}, depth 2" if "depth" in arguments else name
                    return shown, image_case(build, (own[0], size, size))
                except Exception as error:  # too small an image for this architecture: a larger one is tried
                    problem = error
    raise problem


def _takes_size(name: str) -> bool:
    try:
        with torch.device("meta"):
            timm.create_model(name, img_size=timm.get_pretrained_cfg_value(name, "input_size")[-1])
    except TypeError:
        return False
    return True


def torchvision_rows() -> Iterator[tuple[str, Callable[[], tuple[str, Case]]]]:
    for name in torchvision.models.list_models(module=torchvision.models):
        yield f"torchvision:{name}", lambda name=name: _torchvision_case(name)  # type: ignore[misc]


def _torchvision_case(name: str) -> tuple[str, Case]:
    problem: Exception = RuntimeError("no size fits")
    arguments: dict[str, Any] = {"weights": None, "num_classes": CLASSES}
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = False
    for size in (64, 96, 112, 128, 224, 299):
        extra = {"image_size": size} if name.startswith("vit_") else {}
        try:
            return name, image_case(
                lambda e=extra: torchvision.models.get_model(name, **arguments, **e), (3, size, size)
            )  # type: ignore[misc]
        except Exception as error:  # too small an image for this architecture: a larger one is tried
            problem = error
    raise problem


def image_case(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> ZooCase:
    """The case of an image model; raises where it doesn't take images of this shape, or has too few units in them."""
    real = build()  # some libraries compute with tensors while they build, which the meta device can't
    model = meta_copy(real)
    x = torch.empty(4, *shape, device="meta")
    with torch.no_grad():
        logits_of(meta_copy(model).train(), x)
        logits_of(meta_copy(model).eval(), x)
    adapter = find_adapter(model)
    grid = adapter.grid(model, Call((x,)), None)
    units = grid.units
    cell = adapter.stride(model) if isinstance(adapter, CellFill) else 1
    unit = max(1, round(32 / cell)) * cell
    if units < 4 or (adapter.how == "drop" and (shape[1] % grid.rows or shape[2] % grid.cols)):
        raise ValueError(f"{grid.rows} x {grid.cols} units in an image of {shape}")
    logits = logits_of(real.train(), torch.randn(4, *shape))
    F.cross_entropy(logits, torch.arange(4) % CLASSES).backward()
    unused = frozenset(name for name, p in real.named_parameters() if p.requires_grad and p.grad is None)
    return ZooCase(build, shape, units, adapter.how, adapter.prefix(model), unused, unit)


def transformers_rows() -> Iterator[tuple[str, Callable[[], tuple[str, Case]]]]:
    for name, case in {**hf_vision.CASES, **hf_text.CASES}.items():
        yield f"hf:{name.removeprefix('hf ')}", lambda case=case: ("", case)  # type: ignore[misc]


def run_row(make: Callable[[], tuple[str, Case]]) -> dict[str, Any]:
    """One row of the table."""
    began = time.perf_counter()
    try:
        name, case = make()
    except Exception as error:
        return {"problem": f"does not build: {_line(error)}", "seconds": round(time.perf_counter() - began, 1)}
    model, (x, _) = case.build(), case.inputs()
    found = inspect(model, x, measure=False)
    row: dict[str, Any] = {
        "model": name or type(model).__name__,
        "class": type(model).__name__,
        "input": list(case.shape),
        "parameters": sum(p.numel() for p in model.parameters()),
        **{k: v for k, v in found.as_dict().items() if k in KEPT},
    }
    row["dropouts"], row["batch_norms"] = len(found.dropouts), len(found.batch_norms)
    del model
    row["broken"] = {}
    for check in CHECKS:
        gc.collect()
        try:
            check(case)
        except (Exception, pytest.fail.Exception) as error:  # the latter is what pytest.raises ends with
            row["broken"][check.__name__] = _line(error)
    row["seconds"] = round(time.perf_counter() - began, 1)
    return row


def _line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, CPU",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="rows whose name begins so")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="write docs/models.md from the results and stop")
    args = parser.parse_args()
    if args.render:
        PAGE.write_text(render(json.loads(args.results.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"versions": versions(), "rows": {}}
    if args.results.exists():
        results = json.loads(args.results.read_text(encoding="utf-8"))
        results["versions"] = versions()
    for name, make in (*timm_rows(), *torchvision_rows(), *transformers_rows()):
        if name.startswith(tuple(args.only)) if args.only else name not in results["rows"]:
            row = results["rows"][name] = run_row(make)
            state = row.get("problem") or (f"broken: {row['broken']}" if row["broken"] else "ok")
            print(f"{name:40} {row.get('how', '-'):8} {row['seconds']:6.1f} s  {state}", flush=True)
            # Written after each row: a stop loses the current one only.
            partial = args.results.with_suffix(".partial")
            partial.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            partial.replace(args.results)


if __name__ == "__main__":
    main()
