"""timm's VOLO."""

from __future__ import annotations

from timm.models import volo

from tests.cases.case import CLASSES, Case

VOLO = {
    "img_size": 64, "layers": (1, 1, 1, 1), "embed_dims": (16, 24, 24, 24), "num_heads": (2, 2, 2, 2),
    "stem_hidden_dim": 8, "num_classes": CLASSES,
}  # fmt: skip


def case(**kwargs: object) -> Case:
    return Case(lambda: volo.VOLO(**{**VOLO, **kwargs}), (3, 64, 64), 16, "drop")


CASES = {"volo": case(), "volo, average pooling": case(global_pool="avg", use_aux_head=False)}
