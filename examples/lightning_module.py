"""MaskSub in a LightningModule whose training_step stays as it is: one callback. Digits of 8 x 8 pixels, no download.

Run:  python examples/lightning_module.py
For a training_step that calls the model more than once, or manual optimization, see docs/trainers/lightning.md.
"""

import logging
import warnings

import lightning as L
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import masksub
from masksub.integrations.lightning import MaskSubCallback

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*does not have many workers")  # these images are in memory
warnings.filterwarnings("ignore", message=".*LeafSpec")  # between Lightning and newer versions of torch


class Digits(L.LightningModule):
    """A classifier that knows nothing of MaskSub."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model(
            "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=48, depth=2, num_heads=2,
            num_classes=10,
        )  # fmt: skip

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The main branch, as it was."""
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Never masked."""
        x, y = batch
        self.log("accuracy", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


def main() -> None:
    """Train six epochs and print the losses and the accuracy."""
    L.seed_everything(0, verbose=False)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8)
    labels = torch.tensor(digits.target)
    train = DataLoader(TensorDataset(images[:1280], labels[:1280]), batch_size=32, shuffle=True)
    val = DataLoader(TensorDataset(images[1297:], labels[1297:]), batch_size=100)

    trainer = L.Trainer(
        max_epochs=6,
        accelerator="cpu",
        callbacks=[MaskSubCallback("model", F.cross_entropy, sub=masksub.MaskSub(ratio=0.5), weight=0.5)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), train, val)
    metrics = trainer.callback_metrics
    print(f"main {metrics['loss_main']:.3f}, sub {metrics['loss_sub']:.3f}, accuracy {metrics['accuracy']:.3f}")


if __name__ == "__main__":
    main()
