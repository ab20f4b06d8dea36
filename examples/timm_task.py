"""timm's training pieces with a MaskSubTask in place of ClassificationTask, on 8 x 8 digits.

    python examples/timm_task.py

Takes some seconds on a CPU. Needs masksub[timm] and scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import logging

import timm
import torch
from sklearn.datasets import load_digits
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler, accuracy
from torch.utils.data import DataLoader, TensorDataset

from masksub.integrations.timm import MaskSubTask

EPOCHS = 4

logging.basicConfig(level=logging.INFO, format="%(message)s")
torch.manual_seed(0)
images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
images = (images.float().view(-1, 1, 8, 8) - 8) / 8
train = DataLoader(TensorDataset(images[:1200], labels[:1200]), batch_size=64, shuffle=True)
x_val, y_val = images[1200:], labels[1200:]

model = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=2, num_heads=2, num_classes=10
)
optimizer = create_optimizer_v2(model, opt="adamw", lr=4e-3, weight_decay=0.05)
loss_scaler = NativeScaler(device="cpu")
task = MaskSubTask(model, LabelSmoothingCrossEntropy(0.1), seed=0)  # was: ClassificationTask(model, criterion)

for epoch in range(EPOCHS):
    task.train()
    for x, y in train:
        result = task(x, y)
        loss_scaler(result["loss"], optimizer, clip_grad=1.0, parameters=model.parameters())
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        (top1,) = accuracy(model(x_val), y_val)
    print(f"epoch {epoch}: main {result['loss_main']:.3f}, sub {result['loss_sub']:.3f}, top-1 {top1:.1f} %")
