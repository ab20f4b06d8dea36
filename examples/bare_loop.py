"""MaskSub in a loop of plain PyTorch: autocast, gradient scaler, accumulation, clipping, one process or several.

Run:  python examples/bare_loop.py
      torchrun --nproc-per-node 2 examples/bare_loop.py
Three lines are MaskSub's: the import, the one that makes the step, the one that calls it. The page
docs/trainers/bare-loop.md explains them.
"""

import contextlib
import os

import timm
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel

import masksub

EPOCHS, BATCH, ACCUMULATION, SEED = 4, 32, 2, 0


def main() -> None:
    """Train and evaluate; started by torchrun, on all processes together."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if processes > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=device)[:, None] / 8 - 1  # (1797, 1, 8, 8)
    labels = torch.tensor(digits.target, device=device)

    torch.manual_seed(SEED)
    plain = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=2, num_heads=2,
        num_classes=10, class_token=False, global_pool="avg",
    )  # fmt: skip
    plain.to(device)
    model = DistributedDataParallel(plain) if processes > 1 else plain
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    criterion = torch.nn.CrossEntropyLoss()

    step = masksub.TwoBranchStep(model, criterion, sub=masksub.MaskSub(ratio=0.5), weight=0.5)
    masks = masksub.MasksOfUpdates(SEED)

    update = 0
    for epoch in range(EPOCHS):
        order = torch.randperm(1024, generator=torch.Generator().manual_seed(epoch))[rank::processes]
        batches = order.split(BATCH // processes)
        for number, rows in enumerate(batches, start=1):
            complete = number % ACCUMULATION == 0
            unreduced = contextlib.nullcontext() if complete or processes == 1 else model.no_sync()
            with unreduced, torch.autocast(device.type, torch.float16 if scaler.is_enabled() else torch.bfloat16):
                out = step(
                    images[rows],
                    labels[rows],
                    generator=masks(update, rank, device),
                    backward=lambda loss: scaler.scale(loss / ACCUMULATION).backward(),
                )
            if complete:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                update += 1
        if rank == 0:
            print(f"epoch {epoch + 1}: main {out.loss_main:.3f}, sub {out.loss_sub:.3f}")

    if rank == 0:
        plain.eval()
        with torch.no_grad():
            accuracy = (plain(images[1297:]).argmax(1) == labels[1297:]).float().mean()
        print(f"{processes} process(es), {update} updates, accuracy {accuracy:.3f}")
    if processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
