"""Fused and unfused attention on a CPU: forward and backward apart, and the small products that the fused one makes.

    python benchmarks/attention.py

One thread, and the time that this process computed: other programs on the machine don't count. ``attention.md`` says
what the figures mean.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def unfused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As timm's attention does it when ``fused_attn`` is False."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def seconds(attention: Callable[..., Tensor], qkv: Tensor) -> tuple[float, float]:
    """Forward and backward, from the joint projection (B, N, 3, heads, width) and back to it."""
    start = time.process_time()
    out = attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0)).transpose(1, 2).reshape(*qkv.shape[:2], -1)
    forward = time.process_time() - start
    gradient = torch.ones_like(out)
    start = time.process_time()
    torch.autograd.grad(out, qkv, gradient)
    return forward, time.process_time() - start


def operator_table(batch: int, heads: int, width: int, lengths: list[int], repeats: int) -> None:
    """Microseconds of an image and head, and fused / unfused."""
    print(f"\nattention of {batch} images x {heads} heads x {width}, us for one image and head: fused, unfused, ratio")
    print(f"{'dtype':10}{'tokens':>7}{'forward':>26}{'backward':>26}{'both':>8}")
    for dtype in DTYPES:
        for length in lengths:
            qkv = torch.randn(batch, length, 3, heads, width, dtype=dtype, requires_grad=True)
            runs: dict[Callable[..., Tensor], list[tuple[float, float]]] = {fused: [], unfused: []}
            for index in range(-2, repeats):
                for attention, taken in runs.items():
                    pair = seconds(attention, qkv)
                    if index >= 0:
                        taken.append(pair)
            scale = 1e6 / (batch * heads)
            a, b = ([statistics.median(part) * scale for part in zip(*taken)] for taken in runs.values())
            cells = "".join(f"{x:10.0f}{y:9.0f}{x / y:7.2f}" for x, y in zip(a, b))
            print(f"{str(dtype)[6:]:10}{length:7}{cells}{sum(a) / sum(b):8.2f}", flush=True)


def product_table(width: int, lengths: list[int], repeats: int) -> None:
    """A product of the fused kernel's size, alone, and the same product among 64 in one call."""
    print(
        "\none matrix product (block of queries x tokens) @ (tokens x width), us: alone, and its share of a batch of 64"
    )
    print(f"{'dtype':10}{'block':>7}{'tokens':>7}{'alone':>10}{'batched':>10}")
    for dtype in DTYPES:
        for length in lengths:
            block = 32 if length < 192 else 64 if length < 768 else 256  # as the kernel splits the queries
            left = torch.randn(64, block, length, dtype=dtype)
            right = torch.randn(64, length, width, dtype=dtype)
            out = torch.empty(64, block, width, dtype=dtype)
            a, b, c = left[0], right[0], out[0]
            alone, batched = [], []
            for index in range(-2, repeats):
                start = time.process_time()
                for _ in range(64):
                    torch.mm(a, b, out=c)
                middle = time.process_time()
                torch.bmm(left, right, out=out)
                end = time.process_time()
                if index >= 0:
                    alone.append((middle - start) / 64 * 1e6)
                    batched.append((end - middle) / 64 * 1e6)
            row = f"{statistics.median(alone):10.1f}{statistics.median(batched):10.1f}"
            print(f"{str(dtype)[6:]:10}{block:7}{length:7}{row}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--heads", type=int, nargs="+", default=[6], help="3, 6, 12: ViT-Ti, S, B")
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--tokens", type=int, nargs="+", default=[197, 99], help="of the main and the sub branch")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, 1 thread")
    print(f"bf16 products in hardware: {torch.ops.mkldnn._is_mkldnn_bf16_supported()}")
    for heads in args.heads:
        operator_table(args.batch_size, heads, args.width, args.tokens, args.repeats)
    product_table(args.width, args.tokens, args.repeats)


if __name__ == "__main__":
    main()
