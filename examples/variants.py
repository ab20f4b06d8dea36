"""What the sub branch can be: masked, with dropout, with drop path, or several at once.

Run:  python examples/variants.py
One epoch each, to show how they are written; docs/variants.md says what they do and cost.
"""

import timm
import torch
from sklearn.datasets import load_digits

import masksub

SUBS = (
    masksub.MaskSub(0.5),
    masksub.DropSub(0.1),
    masksub.PathSub(0.25),
    masksub.MaskSub(0.5) + masksub.PathSub(0.25),
    masksub.CoSub(0.25),
)

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)

for sub in SUBS:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=2, num_heads=2, num_classes=10
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    step = masksub.TwoBranchStep(model, torch.nn.CrossEntropyLoss(), sub=sub)
    for rows in torch.randperm(1024).split(32):
        out = step(images[rows], labels[rows])
        optimizer.step()
        optimizer.zero_grad()
    print(f"{sub}: main {out.loss_main:.3f}, sub {out.loss_sub:.3f}")
