"""A model of the user's own. If these fail, whoever brings one gets pixels blanked, or the wrong tokens dropped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import masksub
from masksub.core.adapter import find_adapter
from tests.cases.own import OwnViT
from tests.models import vit

KEEP = torch.tensor([[True, False, False, True], [False, True, True, False]])


@pytest.fixture
def _registered() -> Iterator[None]:
    """The case of the contract is registered when the cases are read; these tests register it otherwise."""
    yield
    masksub.register(OwnViT, tokens="embed", prefix=1, patch=8)


def small() -> OwnViT:
    torch.manual_seed(0)
    return OwnViT(pixels=16).eval()


def test_five_lines_and_the_kept_tokens_are_those_of_the_formula() -> None:
    model, x = small(), torch.randn(2, 3, 16, 16)
    with masksub.MaskSub(0.5).applied(model, keep=KEEP):
        out = model(x)
    tokens = model.embed(x)
    kept = torch.stack([torch.cat((tokens[i, :1], tokens[i, 1:][KEEP[i]])) for i in range(2)])
    torch.testing.assert_close(out, model.head(model.blocks(kept)[:, 0]))
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(0.5))
    assert step(x, torch.tensor([0, 1])).loss_sub is not None


@pytest.mark.usefixtures("_registered")
def test_taken_back_it_is_masked_in_pixels_again() -> None:
    masksub.unregister(OwnViT)
    assert find_adapter(small()).how == "pixels"
    masksub.unregister(OwnViT)  # once more does nothing


class Around(nn.Module):
    """A timm ViT inside of a module of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = vit()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.backbone(2 * x)
        return out


def test_a_timm_vit_inside_of_something_else() -> None:
    masksub.register(Around, tokens="backbone.patch_drop", prefix=1)
    try:
        model, x = Around().eval(), torch.randn(2, 3, 16, 16)
        keep = masksub.sample_keep(2, 16, 0.5)
        with masksub.MaskSub(0.5).applied(model, keep=keep):
            out = model(x)
        with masksub.MaskSub(0.5).applied(model.backbone, keep=keep):
            assert torch.equal(out, model.backbone(2 * x))
    finally:
        masksub.unregister(Around)


def test_a_model_that_looks_at_values() -> None:
    """Shapes alone don't do then: a copy is run on the batch."""

    class Looks(OwnViT):
        def forward(self, x: Tensor) -> Tensor:
            assert x.max().item() < 100
            return super().forward(x)

    model = Looks(pixels=16)
    with masksub.MaskSub(0.5).applied(model):
        assert isinstance(model(torch.randn(2, 3, 16, 16)), Tensor)


class Derived(OwnViT):
    pass


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": "embd"}, "has no such module; it has embed, blocks, head"),
        ({"tokens": "head"}, r"its result is of shape \(5,\) each, not tokens"),
        ({"tokens": "embed.unused"}, "the forward never calls it"),
        ({"tokens": "embed", "prefix": 5}, "gives 5 tokens, prefix = 5: nothing is left"),
        ({"tokens": "embed", "prefix": 1, "patch": 4}, "4 x 4 patches, but embed of OwnViT gives 4 tokens"),
    ],
)
def test_wrong_registrations_are_named_at_the_first_forward(arguments: dict[str, object], message: str) -> None:
    masksub.register(OwnViT, **arguments)  # type: ignore[arg-type]
    model = small()
    with pytest.raises(ValueError, match=message), masksub.MaskSub(0.5).applied(model):
        model(torch.randn(2, 3, 16, 16))


@pytest.mark.usefixtures("_registered")
def test_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(TypeError, match="give the class"):
        masksub.register(small(), tokens="embed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prefix = -1"):
        masksub.register(OwnViT, tokens="embed", prefix=-1)
    masksub.register(OwnViT, tokens="embed", prefix=1)
    model = small()
    with pytest.raises(ValueError, match="without a patch size"), masksub.MaskSub(0.5, unit=8).applied(model):
        model(torch.randn(2, 3, 16, 16))


def test_subclasses_are_meant_and_squares_of_patches_work() -> None:
    model = Derived(pixels=32)
    with masksub.MaskSub(0.5, unit=16).applied(model):
        assert isinstance(model(torch.randn(2, 3, 32, 32)), Tensor)
    assert isinstance(model, nn.Module) and find_adapter(model).how == "drop"
