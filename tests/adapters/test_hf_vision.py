"""Models of transformers: what the contract can't see. If it fails, tokens that stay compute something else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

import masksub
from masksub.adapters import hf_ast, hf_beit, hf_dinov3, hf_swin, hf_vit
from masksub.core.adapter import find_adapter
from masksub.core.call import Call
from tests.cases.case import CLASSES, logits_of
from tests.cases.hf_vision import CASES, SWIN, VIT, DinoV3Classifier, build

DROPPED = {name: case for name, case in CASES.items() if case.how == "drop" and case.argument == "pixel_values"}
RATIO = 0.5


def keep_of(units: int, batch: int = 3) -> Tensor:
    return masksub.sample_keep(batch, units, RATIO, generator=torch.Generator().manual_seed(3))


def units_of(model: nn.Module, x: Tensor) -> int:
    return find_adapter(model).grid(model, Call((x,)), None).units


@contextmanager
def keys_blocked(visible: Tensor) -> Iterator[None]:
    """The whole model, but no token looks at those not visible (B, N): an independent way to leave them out."""
    fused, softmax, calls = F.scaled_dot_product_attention, F.softmax, 0
    blocked = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))[:, None, None, :]

    def fused_blocked(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        nonlocal calls
        calls += 1
        return fused(query, key, value, attn_mask=blocked if attn_mask is None else attn_mask + blocked, **kwargs)

    def softmax_blocked(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return softmax(scores + blocked, *args, **kwargs)

    F.scaled_dot_product_attention, F.softmax = fused_blocked, softmax_blocked
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.softmax = fused, softmax
    assert calls, "the model attends in another way"


def last_tokens(model: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
    """What the last block returns, (B, N, D)."""
    results: list[Any] = []
    last = [m for m in model.modules() if type(m).__name__.endswith("Layer")][-1]
    handle = last.register_forward_hook(lambda _m, _args, result: results.append(result))
    try:
        model(pixel_values=x, **kwargs)
    finally:
        handle.remove()
    return results[0][0] if isinstance(results[0], tuple) else results[0]


@pytest.mark.parametrize("case", DROPPED.values(), ids=DROPPED.keys())
def test_tokens_that_stay_are_those_of_the_whole_model_blind_to_the_others(case: Any) -> None:
    """Rotary embeddings and biases gathered with wrong indices would show here."""
    check_tokens(case.model(), torch.randn(3, *case.shape))


@pytest.mark.parametrize("name", ["hf vit", "hf beit, both biases and absolute", "hf data2vec, both biases, eager"])
def test_other_sizes_than_the_pretrained_one(name: str) -> None:
    """The grid follows the input, and the bias is not resized to the few tokens that stay."""
    check_tokens(CASES[name].model(), torch.randn(3, 3, 24, 16), interpolate_pos_encoding=True)


def check_tokens(model: nn.Module, x: Tensor, **kwargs: Any) -> None:
    model = model.eval()
    prefix, units = find_adapter(model).prefix(model), units_of(model, x)
    keep = keep_of(units)
    with masksub.MaskSub(RATIO).applied(model, keep=keep):
        tokens = last_tokens(model, x, **kwargs)
    visible = torch.cat((torch.ones(3, prefix, dtype=torch.bool), keep), dim=1)
    with keys_blocked(visible):
        whole = last_tokens(model, x, **kwargs)
    assert tokens.shape[1] == prefix + units // 2
    torch.testing.assert_close(tokens, whole[visible].view(tokens.shape), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["hf vit", "hf dinov3", "hf beit, a bias each block"])
def test_eager_and_fused_attention_agree(name: str) -> None:
    model, (x, _) = CASES[name].model().eval(), CASES[name].inputs(3)
    results = []
    for attention in ("eager", "sdpa"):
        for part in model.modules():
            if isinstance(part, hf.PreTrainedModel):
                part.set_attn_implementation(attention)
        with masksub.MaskSub(RATIO).applied(model, keep=keep_of(16)):
            results.append(logits_of(model, x))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


def test_spectrogram_units_lie_where_their_patches_lie() -> None:
    """With one unit kept, what is at the centre of its patch counts: rows are bins, columns are frames."""
    case = CASES["hf ast"]
    model, x = case.model().eval(), case.inputs(1)[0]["input_values"]
    for row, col in ((0, 0), (2, 1), (1, 4)):
        keep = torch.zeros(1, 15, dtype=torch.bool)
        keep[0, row * 5 + col] = True
        changed, outside = x.clone(), x.clone()
        changed[0, col * 6 + 4, row * 6 + 4] += 1
        outside[0, (col * 6 + 4 + 12) % 34, row * 6 + 4] += 1
        with masksub.MaskSub(RATIO).applied(model, keep=keep):
            expected = logits_of(model, {"input_values": x})
            assert not torch.allclose(logits_of(model, {"input_values": changed}), expected)
            assert torch.equal(logits_of(model, {"input_values": outside}), expected)


def test_spectrogram_tokens_are_those_of_the_whole_model_on_the_blanked_input() -> None:
    """Places nearer to a masked patch's centre are blank, all others untouched."""
    case = CASES["hf ast"]
    model, x = case.model().eval(), case.inputs(3)[0]["input_values"]
    keep, seen = keep_of(15), []
    handle = model.audio_spectrogram_transformer.embeddings.register_forward_pre_hook(
        lambda _m, args: seen.append(args[0])
    )
    with masksub.MaskSub(RATIO, fill=7.0).applied(model, keep=keep):
        sub = logits_of(model, {"input_values": x})
    handle.remove()
    blank = case.changed({"input_values": torch.zeros_like(x)}, keep, (3, 5), visible=False)["input_values"] != 0
    assert torch.equal(seen[0], x.masked_fill(blank, 7.0))
    with keys_blocked(torch.cat((torch.ones(3, 2, dtype=torch.bool), keep), dim=1)):
        whole = logits_of(model, {"input_values": seen[0]})
    torch.testing.assert_close(sub, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("unit", "accepted"), [(12, True), (10, False)])
def test_spectrogram_units_are_multiples_of_the_distance_between_patches(unit: int, accepted: bool) -> None:
    model, (x, _) = CASES["hf ast"].model(), CASES["hf ast"].inputs()
    with masksub.MaskSub(RATIO, unit=unit).applied(model):
        if accepted:
            logits_of(model, x)
        else:
            with pytest.raises(ValueError, match="a patch every 6 bins and 6 frames"):
                logits_of(model, x)


@pytest.mark.parametrize("kind", ["Swin", "Swinv2"])
def test_swin_fills_where_the_library_puts_its_own_mask_token(kind: str) -> None:
    model = build(f"{kind}ForImageClassification", getattr(hf, f"{kind}Config")(**SWIN)).eval()
    token = masksub.add_mask_token(model)
    x, keep = torch.randn(3, 3, 64, 64), keep_of(4)
    with masksub.MaskSub(RATIO, fill="token").applied(model, keep=keep):
        sub = logits_of(model, {"pixel_values": x})
    encoder = model.base_model
    encoder.embeddings.mask_token = token
    cells = keep.view(3, 2, 2).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2).flatten(1)  # 32 px, 4 px a cell
    expected = model.classifier(encoder(x, bool_masked_pos=~cells).pooler_output)
    torch.testing.assert_close(sub, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("name", ["hf vit", "hf dinov3", "hf beit, both biases and absolute", "hf swin v2"])
def test_gradient_checkpointing_gives_the_same_gradient(name: str) -> None:
    case = CASES[name]
    plain, (x, y) = case.model(), case.inputs()
    checkpointed = copy.deepcopy(plain)
    for part in checkpointed.modules():
        if isinstance(part, hf.PreTrainedModel):
            part.gradient_checkpointing_enable({"use_reentrant": False})
            break
    keep = keep_of(case.units, len(y))
    for model in (plain, checkpointed):
        torch.manual_seed(5)
        masksub.TwoBranchStep(model, nn.CrossEntropyLoss(), sub=masksub.MaskSub(RATIO))(x, y, keep=keep)
    for (path, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, path=path: f"{path}: {text}")


@pytest.mark.parametrize(
    "name", ["hf vit", "hf dinov2 with registers", "hf dinov3", "hf beit, a bias each block", "hf ast", "hf swin"]
)
def test_compiled_model_is_not_traced_again(name: str) -> None:
    case = CASES[name]
    model, (x, _) = case.model().eval(), case.inputs(3)
    keep = keep_of(case.units)
    torch.compiler.reset()
    graphs = 0

    def backend(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        counts = []
        for _ in range(3):
            logits_of(compiled, x)
            with masksub.MaskSub(RATIO).applied(compiled, keep=keep):
                sub = logits_of(compiled, x)
            counts.append(graphs)
        with masksub.MaskSub(RATIO).applied(model, keep=keep):
            torch.testing.assert_close(sub, logits_of(model, x))
    assert 0 < counts[0] == counts[-1], f"graphs after each round: {counts}"


class Around(nn.Module):
    """A user's own module around encoders of the library."""

    def __init__(self, *encoders: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(sum(encoder(pixel_values).last_hidden_state[:, 0] for encoder in self.encoders))


ENCODERS: dict[str, tuple[type, Any]] = {
    "ViTModel": (hf_vit.HfViT, hf.ViTConfig(**VIT)),
    "DeiTModel": (hf_vit.HfViT, hf.DeiTConfig(**VIT)),
    "Dinov2Model": (hf_vit.HfViT, hf.Dinov2Config(**VIT)),
    "CLIPVisionModel": (hf_vit.HfViT, hf.CLIPVisionConfig(**VIT)),
    "SiglipVisionModel": (hf_vit.HfViT, hf.SiglipVisionConfig(**VIT)),
    "DINOv3ViTModel": (hf_dinov3.HfDinoV3, hf.DINOv3ViTConfig(**VIT)),
    "BeitModel": (hf_beit.HfBeit, hf.BeitConfig(**VIT, use_relative_position_bias=True)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_alone_and_in_a_users_module(name: str) -> None:
    adapter, config = ENCODERS[name]
    encoder = getattr(hf, name)(config).eval()
    model, x = Around(encoder).eval(), torch.randn(3, 3, 16, 16)
    assert type(find_adapter(encoder)) is adapter and type(find_adapter(model)) is adapter
    with masksub.MaskSub(RATIO).applied(encoder, keep=keep_of(16)):
        tokens = encoder(pixel_values=x).last_hidden_state
    assert tokens.shape[1] == find_adapter(encoder).prefix(encoder) + 8
    with masksub.MaskSub(RATIO).applied(model, keep=keep_of(16)):
        torch.testing.assert_close(model(x), model.head(tokens[:, 0]))


class Weighted(hf.ViTForImageClassification):
    """Takes weights of its examples, as a user's own loss needs them."""

    def forward(self, sample_weight: Any = None, pixel_values: Any = None, **kwargs: Any) -> Any:
        return super().forward(pixel_values=pixel_values, **kwargs)


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(3, 2, 2, 2, 2)])
def test_the_input_is_what_the_library_calls_so_wherever_it_stands(other: Tensor) -> None:
    """``main_input_name`` of the model, not the first of a batch's keys."""
    model, x = Weighted(hf.ViTConfig(**VIT)).eval(), torch.randn(3, 3, 16, 16)
    outputs = []
    for inputs in ({"pixel_values": x, "sample_weight": other}, {"sample_weight": other, "pixel_values": x}):
        with masksub.MaskSub(RATIO).applied(model, keep=keep_of(16)):
            outputs.append(model(**inputs).logits)
    assert torch.equal(*outputs)


def test_models_with_more_around_than_is_known_are_left_to_others() -> None:
    """Two encoders, a model of images and texts, and one that needs the grid back: dropping tokens would break them."""
    known = (hf_vit.HfViT, hf_dinov3.HfDinoV3, hf_beit.HfBeit, hf_ast.HfAst, hf_swin.HfSwin)
    two = Around(hf.ViTModel(hf.ViTConfig(**VIT)), hf.Dinov2Model(hf.Dinov2Config(**VIT)))
    text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    clip = hf.CLIPModel(hf.CLIPConfig(vision_config=VIT, text_config={**text, "vocab_size": 50}))
    backbone = hf.Dinov2Backbone(hf.Dinov2Config(**VIT))
    for model in (
        two,
        clip,
        Around(clip),
        backbone,
        Around(backbone),
        hf.ViTForMaskedImageModeling(hf.ViTConfig(**VIT)),
    ):
        assert not isinstance(find_adapter(model), known), type(model).__name__


def test_dinov3_augments_its_coordinates_in_the_sub_branch_too() -> None:
    """The recipe's own shift and rescale of the rotary embeddings stay in force, on the tokens that stay."""
    model = DinoV3Classifier(pos_embed_rescale=2.0).train()
    x, keep = torch.randn(3, 3, 16, 16), keep_of(16)
    with masksub.MaskSub(RATIO).applied(model, keep=keep):
        first, second = model(x), model(x)
    assert not torch.equal(first, second)
