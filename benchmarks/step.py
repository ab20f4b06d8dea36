"""What a MaskSub step costs beside a plain one: time, operations and peak memory, as ratios within one process.

    python benchmarks/step.py
    python benchmarks/step.py --models vit_small_patch16_224 --dtypes bf16 --attention fused --json step.json

A step is forward and backward of ``TwoBranchStep`` in split mode, on random images; the optimizer, which costs the same
in both, is left out. Plain and masked steps take turns, so that what else the machine does falls on both alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own messages; read when torch is loaded

import timm
import torch
from torch import Tensor, nn

from masksub import METHODS, TwoBranchStep
from masksub.app.attention import choose_attention, set_attention
from masksub.core.flops import step_flops
from masksub.core.measurement import paired_seconds, peak_memory

Step = Callable[[], object]
MIB = 2**20
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_step(model: nn.Module, weight: float, args: argparse.Namespace) -> TwoBranchStep:
    """The step of the library; at weight 0 it is the plain step."""
    sub = METHODS[args.method].branch(args.ratio, p=args.p)
    return TwoBranchStep(model, nn.CrossEntropyLoss(), sub=sub, weight=weight)


def flops(model: nn.Module, shape: tuple[int, ...], weight: float, args: argparse.Namespace) -> int:
    """Operations of one step."""

    def run(meta: nn.Module, x: Tensor) -> None:
        make_step(meta, weight, args)(x, torch.zeros(len(x), dtype=torch.long, device=x.device))

    return step_flops(model, run, shape)


def check_peak_memory(device: torch.device) -> None:
    """Hold ``peak_memory`` against a case with a known answer: 4 + 8 - 4 + 2 MiB has its peak at 12."""
    options: dict[str, Any] = {"dtype": torch.uint8, "device": device}

    def run() -> None:
        a = torch.empty(4 * MIB, **options)
        b = torch.empty(8 * MIB, **options)
        del a
        c = torch.empty(2 * MIB, **options)
        del b, c

    found = peak_memory(run, device)
    if found != 12 * MIB:
        raise RuntimeError(f"peak_memory found {found / MIB} MiB where 12 were held")


def measure(name: str, dtype: str, attention: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One row: a model in one precision with one kind of attention."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    shape = (args.batch_size, 3, 224, 224)
    how = choose_attention(model, shape, device=device, precision=dtype) if attention == "auto" else attention
    set_attention(model, how)
    plain_flops = flops(model, shape, 0.0, args)
    masked_flops = flops(model, shape, 0.5, args)

    model.to(device)
    x = torch.randn(shape, device=device)
    y = torch.randint(1000, (args.batch_size,), device=device)

    def step(weight: float) -> Step:
        two_branch = make_step(model, weight, args)

        def run() -> None:
            model.zero_grad(set_to_none=True)
            mixed = torch.autocast(device.type, DTYPES[dtype]) if dtype != "fp32" else contextlib.nullcontext()
            with mixed:
                two_branch(x, y)

        return run

    steps = step(0.0), step(0.5)
    pairs = paired_seconds(*steps, args.repeats, device, CLOCKS[args.clock])
    memory = []
    for run in steps:
        model.zero_grad(set_to_none=True)
        memory.append(peak_memory(run, device))
    # What training holds all the time: the weights and the two moments of AdamW. Gradients are in the step's own peak.
    state = 3 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    plain, masked = (statistics.median(column) for column in zip(*pairs))
    by_pair = [b / a for a, b in pairs]  # steps next to each other: a machine that slows down slows both
    quartiles = statistics.quantiles(by_pair, n=4) if len(by_pair) > 1 else by_pair * 3
    return {
        "model": name,
        "dtype": dtype,
        "attention": how,
        "flop_ratio": masked_flops / plain_flops,
        "time_ratio": statistics.median(by_pair),
        "time_ratio_quartiles": [quartiles[0], quartiles[2]],
        "time_ratio_of_medians": masked / plain,
        "time_ratio_of_fastest": min(b for _, b in pairs) / min(a for a, _ in pairs),
        "memory_ratio": memory[1] / memory[0],
        "memory_ratio_with_state": (memory[1] + state) / (memory[0] + state),
        "plain": {"seconds": plain, "flops": plain_flops, "peak_bytes": memory[0]},
        "masksub": {"seconds": masked, "flops": masked_flops, "peak_bytes": memory[1]},
        "pairs_seconds": pairs,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Where the figures come from."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "cpu": cpu,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "command": " ".join(["python", "benchmarks/step.py", *sys.argv[1:]]),
    }


COLUMNS = (
    ("model", 24), ("dtype", 6), ("attention", 10), ("FLOPs", 7), ("time", 7), ("(quartiles)", 14), ("fastest", 8),
    ("memory", 8), ("+state", 8), ("ms", 9), ("MiB", 8),
)  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the table: ratios MaskSub / plain, then milliseconds and MiB of the plain step.

    "memory" is the step's own peak, "+state" the same with weights and AdamW's moments on both sides.
    """
    low, high = row["time_ratio_quartiles"]
    cells = (
        row["model"],
        row["dtype"],
        row["attention"] or "none",
        f"{row['flop_ratio']:.3f}",
        f"{row['time_ratio']:.3f}",
        f"({low:.2f}, {high:.2f})",
        f"{row['time_ratio_of_fastest']:.3f}",
        f"{row['memory_ratio']:.3f}",
        f"{row['memory_ratio_with_state']:.3f}",
        f"{row['plain']['seconds'] * 1e3:.1f}",
        f"{row['plain']['peak_bytes'] / MIB:.0f}",
    )
    return table_line(cells)


def table_line(cells: Sequence[str]) -> str:
    """Three names to the left, figures to the right."""
    return "".join(f"{cell:{'<' if i < 3 else '>'}{width}}" for i, (cell, (_, width)) in enumerate(zip(cells, COLUMNS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    vits = [f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")]
    parser.add_argument("--models", nargs="+", default=vits, help="timm models that take 224 x 224 images")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--attention", nargs="+", default=["auto"], choices=["fused", "unfused", "auto"])
    parser.add_argument("--batch-size", type=int, help="images; default 8 on a CPU, 128 on a GPU")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of steps")
    methods = ("masksub", "dropsub", "pathsub", "cosub")
    parser.add_argument("--method", default="masksub", choices=methods, help="the sub branch beside the plain step")
    parser.add_argument("--p", type=float, default=0.5, help="rate of dropsub, pathsub and cosub")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of tokens that is masked")
    parser.add_argument("--threads", type=int, help="of the CPU; default PyTorch's")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu: time that this process computed, for a CPU that others use too; needs --threads 1",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write environment and rows to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    args.batch_size = args.batch_size or (128 if device.type == "cuda" else 8)
    if args.clock == "cpu" and (device.type != "cpu" or args.threads != 1):
        parser.error("--clock cpu is the time of one thread on a CPU: it needs --device cpu --threads 1")
    if args.threads:
        torch.set_num_threads(args.threads)

    check_peak_memory(device)
    result: dict[str, Any] = {
        "environment": environment(device),
        "options": {key: value for key, value in vars(args).items() if key != "json"},
        "rows": [],
    }
    print(table_line([name for name, _ in COLUMNS]))
    for name in args.models:
        for dtype in args.dtypes:
            for attention in args.attention:
                row = measure(name, dtype, attention, args, device)
                result["rows"].append(row)
                print(line(row), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
