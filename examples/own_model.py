"""A model that masksub doesn't know: one call of ``masksub.register``, and its tokens are really dropped.

Run:  python examples/own_model.py
Without that call the model would be masked in pixels, which saves nothing. docs/your-own-model.md has the details.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import masksub


class Patches(nn.Module):
    """Patches of 2 x 2 pixels with their positions, a class token in front."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, 64, 2, stride=2)
        self.cls = nn.Parameter(torch.zeros(1, 1, 64))
        self.pos = nn.Parameter(0.02 * torch.randn(1, 17, 64))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) to (B, 17, 64)."""
        x = self.proj(x).flatten(2).transpose(1, 2)
        return torch.cat((self.cls.expand(len(x), -1, -1), x), dim=1) + self.pos


class MyViT(nn.Module):
    """A classifier of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Patches()
        layer = nn.TransformerEncoderLayer(64, 2, 256, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) to logits (B, 10)."""
        return self.head(self.blocks(self.embed(x))[:, 0])


masksub.register(MyViT, tokens="embed", prefix=1, patch=2)  # after this module there are tokens; the first one stays

torch.manual_seed(0)
model = MyViT()
print(masksub.inspect(model, torch.randn(32, 1, 8, 8)))

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
step = masksub.TwoBranchStep(model, nn.CrossEntropyLoss(), sub=masksub.MaskSub(ratio=0.5))
for epoch in range(3):
    for rows in torch.randperm(1024).split(32):
        out = step(images[rows], labels[rows])
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch + 1}: main {out.loss_main:.3f}, sub {out.loss_sub:.3f}")

model.eval()
with torch.no_grad():
    accuracy = (model(images[1297:]).argmax(1) == labels[1297:]).float().mean()
print(f"accuracy {accuracy:.3f}")
