"""How a model will be masked and what a step will cost, before anything is trained.

Run:  python examples/inspect_model.py
Weights are random and small here; no download. On the command line: masksub inspect vit_small_patch16_224
"""

import timm
import torch

import masksub

MODELS = {
    "vit_tiny_patch16_224": {"img_size": 64, "patch_size": 16, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "depths": (1, 1), "num_heads": (2, 4)},
    "resnet10t": {},
}

for name, arguments in MODELS.items():
    model = timm.create_model(name, num_classes=10, **arguments)
    found = masksub.inspect(model, torch.randn(4, 3, 64, 64))
    print(f"--- {name}: {found.how}, {found.visible} of {found.units} units stay, {found.flop_ratio:.2f} x operations")
    print(found)
