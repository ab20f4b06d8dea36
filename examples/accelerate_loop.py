"""MaskSub in a loop that uses Accelerate: any device and precision, accumulation, several processes, resumption.

Run:  python examples/accelerate_loop.py
      accelerate launch examples/accelerate_loop.py
      python examples/accelerate_loop.py --state state     # saves after each epoch; started again, goes on from there
Five lines are MaskSub's: two imports, the step, its registration for checkpoints, and the call. The page
docs/trainers/accelerate.md explains them.
"""

import argparse
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import masksub
from masksub.integrations.accelerate import AcceleratedStep

EPOCHS, BATCH = 4, 32


def main() -> None:
    """Train and evaluate."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, help="folder to save to, and to go on from")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2)
    set_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8)
    labels = torch.tensor(digits.target)
    loader = DataLoader(
        TensorDataset(images[:1024], labels[:1024]), batch_size=BATCH // accelerator.num_processes, shuffle=True
    )
    evaluation = DataLoader(TensorDataset(images[1297:], labels[1297:]), batch_size=100)

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=2, num_heads=2,
        num_classes=10, class_token=False, global_pool="avg",
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model, optimizer, loader, evaluation = accelerator.prepare(model, optimizer, loader, evaluation)
    criterion = torch.nn.CrossEntropyLoss()

    step = AcceleratedStep(accelerator, model, criterion, sub=masksub.MaskSub(ratio=0.5), weight=0.5)
    accelerator.register_for_checkpointing(step)

    if arguments.state is not None and arguments.state.exists():
        accelerator.load_state(str(arguments.state))
        accelerator.print(f"goes on after {step.updates} updates")
    updates_of_epoch = len(loader) // accelerator.gradient_accumulation_steps
    for epoch in range(step.updates // updates_of_epoch, arguments.epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                out = step(x, y)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        losses = step.losses(out)
        accelerator.print(f"epoch {epoch + 1}: main {losses['loss_main']:.3f}, sub {losses['loss_sub']:.3f}")
        if arguments.state is not None:
            accelerator.save_state(str(arguments.state))

    model.eval()
    right = []
    for x, y in evaluation:
        with torch.no_grad():
            right.append(accelerator.gather_for_metrics(model(x).argmax(1) == y))
    accuracy = torch.cat(right).float().mean()
    accelerator.print(f"{accelerator.num_processes} process(es), {step.updates} updates, accuracy {accuracy:.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
