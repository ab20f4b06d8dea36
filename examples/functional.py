"""MaskSub by hand: ``branch.applied`` alone, for a loop that wants to see each forward and each loss.

Run:  python examples/functional.py
Both forwards run before one backward here, which holds the activations of both. TwoBranchStep runs the backward of the
main branch first.
"""

import timm
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import masksub

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)

torch.manual_seed(0)
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=2, num_heads=2, num_classes=10,
    class_token=False, global_pool="avg",
)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
branch = masksub.MaskSub(ratio=0.5)

for epoch in range(3):
    for rows in torch.randperm(1024).split(32):
        x, y = images[rows], labels[rows]
        logits = model(x)
        with branch.applied(model):  # the same weights on half of the patches
            sub_logits = model(x)
        target = masksub.relaxed_target(logits, "softmax")  # the main branch's own output, detached
        loss_main, loss_sub = cross_entropy(logits, y), cross_entropy(sub_logits, target)
        (0.5 * loss_main + 0.5 * loss_sub).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch + 1}: main {loss_main:.3f}, sub {loss_sub:.3f}")

model.eval()
with torch.no_grad():
    whole = model(images[1297:])
    with branch.applied(model):
        masked = model(images[1297:])
    assert torch.equal(whole, model(images[1297:]))  # outside the block the model is as it was
for name, logits in (("whole images", whole), ("half of the patches", masked)):
    print(f"accuracy on {name}: {(logits.argmax(1) == labels[1297:]).float().mean():.3f}")
