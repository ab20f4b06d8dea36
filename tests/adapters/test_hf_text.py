"""Beside the contract: text is masked as a sentence that was shorter from the start would not be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import masksub
from masksub.core.adapter import find_adapter
from masksub.core.flops import step_flops
from masksub.core.sentences import maskable_tokens, set_special_tokens
from tests.cases.case import call_of, logits_of
from tests.cases.hf_text import CASES, LENGTHS, ORDINARY, SIZES, VOCABULARY, TextCase, classifier
from tests.conftest import shared

DROPPED = {name: case for name, case in CASES.items() if case.how == "drop"}
BERT = CASES["bert"]
countable = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5,
    reason="older transformers look at attention masks by value, which meta tensors have not",
)


def some_keep(x: dict[str, Tensor], seed: int = 3) -> Tensor:
    """A third or so of all positions, at random."""
    return torch.rand(x["input_ids"].shape, generator=torch.Generator().manual_seed(seed)) < 0.35


def lengths_seen(model: nn.Module) -> list[int]:
    """Filled with the length of each sentence that the model embeds."""
    seen: list[int] = []
    table = model.get_input_embeddings()  # type: ignore[operator]
    table.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1]))
    return seen


def blocked(x: dict[str, Tensor], keep: Tensor) -> dict[str, Tensor]:
    """The whole sentence, with no attention to ordinary tokens that are masked."""
    stay = keep | (x["input_ids"] < ORDINARY)
    return {**x, "attention_mask": x["attention_mask"] * stay}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DROPPED)
def test_equal_to_the_whole_sentence_without_attention_to_masked_tokens(name: str, attention: str) -> None:
    """The reference: every kept token has its position of before, absolute, rotary or relative, and its window."""
    case = DROPPED[name]
    model, (x, _) = case.model().eval(), case.inputs()
    model.set_attn_implementation(attention)  # type: ignore[operator]
    for seed in range(3):
        keep = some_keep(x, seed)
        expected = logits_of(model, blocked(x, keep))
        with masksub.MaskSub(0.5).applied(model, keep=keep):
            torch.testing.assert_close(logits_of(model, x), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(logits_of(model, x), expected, atol=1e-3)


@pytest.mark.parametrize("name", DROPPED)
def test_one_sentence_alone(name: str) -> None:
    """A batch of one, where models take a first dimension of 1 for something else."""
    case = DROPPED[name]
    model, (x, _) = case.model().eval(), case.inputs(1)
    keep = some_keep(x)
    expected = logits_of(model, blocked(x, keep))
    with masksub.MaskSub(0.5).applied(model, keep=keep):
        torch.testing.assert_close(logits_of(model, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_the_sub_branch_is_shorter(name: str) -> None:
    """The longest sentence has 12 tokens, of which two, in a pair three, are special; half of the others stay."""
    model, (x, _) = CASES[name].model(), CASES[name].inputs()
    special = 3 if CASES[name].pairs else 2
    seen = lengths_seen(model)
    with masksub.MaskSub(0.5).applied(model):
        logits_of(model, x)
    assert seen == [special + (LENGTHS[0] - special) // 2]


def test_each_sentence_keeps_the_same_share_of_its_own_length() -> None:
    """Rows are padded to the longest, with the padding token."""
    model, (x, _) = BERT.model(), BERT.inputs()
    seen: list[Tensor] = []
    model.bert.embeddings.word_embeddings.register_forward_hook(lambda _, args, out: seen.append(args[0]))  # type: ignore[operator, union-attr]
    with masksub.MaskSub(0.5).applied(model):
        logits_of(model, x)
    assert (seen[0] != BERT.model().config.pad_token_id).sum(dim=1).tolist() == [3 + (n - 3) // 2 for n in LENGTHS]  # type: ignore[union-attr]
    assert all(row.tolist() == sorted(row.tolist(), key=lambda token: token == 0) for row in seen[0])


@pytest.mark.parametrize("left", [False, True])
def test_what_may_be_masked(left: bool) -> None:
    """Neither the ends of a sentence, nor the end of its first part, nor what is named, nor padding."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 0, 0]])
    types = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]])
    expected = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]]).bool()
    if left:
        ids, types, expected = (torch.stack((t[0], t[1].roll(2))) for t in (ids, types, expected))
    assert torch.equal(maskable_tokens(ids, ids != 0, (), types), expected)
    assert torch.equal(maskable_tokens(ids, ids != 0, (9,), types), expected & (ids != 9))


def test_ids_named_by_the_configuration_or_the_user_stay() -> None:
    """BERT's configuration names the padding only: other delimiters within are known by ``set_special_tokens``."""
    model = classifier("Bert")
    ids = torch.tensor([[1, 10, 11, 2, 12, 13, 4, 14, 2]])
    grid = find_adapter(model).grid(model, call_of({"input_ids": ids}), None)
    assert grid.maskable is not None and grid.maskable.nonzero()[:, 1].tolist() == [1, 2, 3, 4, 5, 6, 7]
    before = list(model.state_dict())
    set_special_tokens(model, [1, 2, 0], mask=4)
    for each in (model, copy.deepcopy(model)):
        grid = find_adapter(each).grid(each, call_of({"input_ids": ids}), None)
        assert grid.maskable is not None and grid.maskable.nonzero()[:, 1].tolist() == [1, 2, 4, 5, 7]
    assert list(model.state_dict()) == before
    roberta = classifier("Roberta")
    grid = find_adapter(roberta).grid(roberta, call_of({"input_ids": ids + 2}), None)
    assert grid.maskable is not None and grid.maskable.nonzero()[:, 1].tolist() == [1, 2, 3, 4, 5, 6, 7]
    ids[0, 3] = 0
    grid = find_adapter(roberta).grid(roberta, call_of({"input_ids": ids + 2}), None)
    assert grid.maskable is not None and grid.maskable.nonzero()[:, 1].tolist() == [1, 2, 4, 5, 6, 7]


def test_special_tokens_are_saved_with_the_model(tmp_path: Any) -> None:
    model = classifier("Bert")
    set_special_tokens(model, {1, 2}, mask=4)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    config = transformers.BertForSequenceClassification.from_pretrained(tmp_path).config
    assert config.special_token_ids == [1, 2] and config.mask_token_id == 4


def test_special_tokens_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="special token 40: ids of this model are at least 0 and below 40"):
        set_special_tokens(classifier("Bert"), [1], mask=VOCABULARY)
    with pytest.raises(ValueError, match=r"Linear has no \.config"):
        set_special_tokens(nn.Linear(1, 1), [1])


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2", "modernbert"])
def test_without_attention_mask(name: str) -> None:
    """Padding is known by its id. Without one, all tokens are real: a batch of equal rows is what remains."""
    case = CASES[name]
    model, (x, _) = case.model().eval(), case.inputs()
    keep = some_keep(x)
    bare = {key: value for key, value in x.items() if key != "attention_mask"}
    with masksub.MaskSub(0.5).applied(model, keep=keep):
        assert torch.equal(logits_of(model, bare), logits_of(model, x))
    ids = x["input_ids"][:1].clone()
    model.config.pad_token_id = None  # type: ignore[union-attr, assignment]
    ids[0, 5] = dict(case.ids)["pad"]
    grid = find_adapter(model).grid(model, call_of({"input_ids": ids}), None)
    assert grid.maskable is not None and bool(grid.maskable[0, 5])


def test_arguments_by_place_and_positions_of_the_users_own() -> None:
    model, (x, _) = BERT.model().eval(), BERT.inputs()
    keep, positions = some_keep(x), torch.arange(12).flip(0) + 3
    expected = logits_of(model, {**blocked(x, keep), "position_ids": positions.unsqueeze(0)})
    with masksub.MaskSub(0.5).applied(model, keep=keep):
        named = logits_of(model, {**x, "position_ids": positions.unsqueeze(0)})
        placed = model(x["input_ids"], x["attention_mask"], x["token_type_ids"], positions.unsqueeze(0)).logits
        assert torch.equal(model(x["input_ids"], x["attention_mask"], x["token_type_ids"])[0], logits_of(model, x))
    torch.testing.assert_close(named, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(named, placed)


class Around(nn.Module):
    """A user's own classifier: the mean of an encoder's tokens."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(16, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1)
        return self.head((tokens * weight).sum(dim=1) / weight.sum(dim=1))


@pytest.mark.parametrize("name", ["bert", "modernbert", "deberta-v2", "roberta"])
def test_a_module_of_the_users_own_around_an_encoder(name: str) -> None:
    case = CASES[name]
    inner: Any = case.model()
    model, (x, _) = Around(inner.base_model).eval(), case.inputs()
    x.pop("token_type_ids", None)
    keep = some_keep(x) | (x["input_ids"] < ORDINARY)  # without types nothing tells where BERT's first part ends
    expected = model(**blocked(x, keep))
    with masksub.MaskSub(0.5).applied(model, keep=keep):
        torch.testing.assert_close(model(**x), expected, rtol=1e-5, atol=1e-5)
    assert find_adapter(model).how == "drop"


@pytest.mark.parametrize("name", ["bert", "modernbert", "deberta-v2"])
def test_gradient_checkpointing_gives_the_same_gradient(name: str) -> None:
    case = CASES[name]
    (x, y), one = case.inputs(), case.model()
    two: Any = copy.deepcopy(one)
    # The name before and since transformers 5.
    enable = getattr(two, "activation_checkpointing_enable", None) or two.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    keep = some_keep(x)
    for model in (one, two):
        torch.manual_seed(0)
        masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(0.5))(x, y, keep=keep)
    for (key, a), b in zip(one.named_parameters(), two.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "deberta-v2", "mpnet"])
def test_compiled(name: str) -> None:
    """The same logits; another choice of the same lengths does not compile again."""
    case = CASES[name]
    model, (x, _) = case.model().eval(), case.inputs()
    count = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=count, dynamic=False)
    branch = masksub.MaskSub(0.5)
    for seed in (0, 1, 2):
        with branch.applied(model, generator=torch.Generator().manual_seed(seed)):
            expected = logits_of(model, x)
        with branch.applied(compiled, generator=torch.Generator().manual_seed(seed)):
            torch.testing.assert_close(logits_of(compiled, x), expected, rtol=1e-5, atol=1e-5)
        if seed == 0:
            frames = count.frame_count
    assert count.frame_count == frames > 0


def test_inputs_that_cannot_be_masked_are_refused() -> None:
    model, (x, _) = BERT.model().eval(), BERT.inputs()
    embedded = model.get_input_embeddings()(x["input_ids"])  # type: ignore[operator]
    wide = x["attention_mask"][:, None, None, :]
    for call, message in (
        ({"inputs_embeds": embedded}, "input_ids of shape"),
        ({"input_ids": x["input_ids"][:, None]}, "input_ids of shape"),
        ({**x, "attention_mask": wide}, r"attention_mask that is Tensor of shape \(4, 1, 1, 12\)"),
        ({**x, "attention_mask": {"full_attention": wide}}, "attention_mask that is dict"),
    ):
        with pytest.raises(ValueError, match=message), masksub.MaskSub(0.5).applied(model):
            model(**call)
    with pytest.raises(ValueError, match="units are tokens"), masksub.MaskSub(0.5, unit=16).applied(model):
        logits_of(model, x)
    with pytest.raises(ValueError, match="nothing is filled"), masksub.MaskSub(0.5, fill="token").applied(model):
        pass


def test_a_sentence_of_one_word_stays_whole() -> None:
    """Nothing of it can go, at any ratio; it must not end a training in which it is a batch."""
    model, short = BERT.model().eval(), {"input_ids": torch.tensor([[1, 9, 2]])}
    expected = logits_of(model, short)
    with masksub.MaskSub(0.5).applied(model):
        torch.testing.assert_close(logits_of(model, short), expected)


def test_a_sentence_without_ordinary_tokens_stays_as_it_is() -> None:
    model, (x, _) = BERT.model().eval(), BERT.inputs()
    x["input_ids"][2], x["attention_mask"][2] = 0, 0
    x["input_ids"][2, :2], x["attention_mask"][2, :2] = torch.tensor([1, 2]), 1
    expected = logits_of(model, x)
    with masksub.MaskSub(0.5).applied(model):
        logits = logits_of(model, x)
    torch.testing.assert_close(logits[2], expected[2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], expected[0], atol=1e-3)


class Elsewhere(transformers.BertForSequenceClassification):
    """Does without positions."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Any = None) -> Tensor:
        return self.classifier(self.bert.embeddings.word_embeddings(input_ids).mean(dim=1))


def test_a_forward_that_asks_for_no_positions_is_told() -> None:
    model, (x, _) = Elsewhere(transformers.BertConfig(**SIZES)), BERT.inputs()
    with (
        pytest.raises(RuntimeError, match="without asking for the positions"),
        masksub.MaskSub(0.5).applied(model),
    ):
        model(**x)


def test_positions_counted_inside_attention_keep_the_length() -> None:
    """Before transformers 5, BERT could count relative positions there."""
    model = classifier("Bert", mask_token_id=4)
    model.config.position_embedding_type = "relative_key"  # type: ignore[union-attr, assignment]
    assert find_adapter(model).how == "replace"


@pytest.mark.parametrize("name", ["roformer", "deberta-v2, convolution"])
def test_replacing_is_writing_the_mask_token(name: str) -> None:
    model, (x, _) = CASES[name].model().eval(), CASES[name].inputs()
    keep = some_keep(x)
    ids = torch.where(keep | (x["input_ids"] < ORDINARY), x["input_ids"], 3)
    with masksub.MaskSub(0.5).applied(model, keep=keep):
        assert torch.equal(logits_of(model, x), logits_of(model, {**x, "input_ids": ids}))


def test_a_mask_token_that_nobody_named_is_asked_for() -> None:
    model = classifier("RoFormer")
    with pytest.raises(ValueError, match="mask=tokenizer"), masksub.MaskSub(0.5).applied(model):
        pass
    set_special_tokens(model, [0, 1, 2, 3], mask=3)
    with masksub.MaskSub(0.5).applied(model):
        logits_of(model, CASES["roformer"].inputs()[0])


def bert_forward(tokens: int, width: int = 16, depth: int = 2, classes: int = 5) -> int:
    """Operations for one sentence, written out: four projections, two attention products, MLP of 2 x width, pooler."""
    block = 2 * tokens * width * 4 * width + 2 * 2 * tokens * tokens * width + 2 * tokens * width * 4 * width
    return depth * block + 2 * width * width + 2 * width * classes


@countable
def test_operations_are_counted_for_a_sentence_without_padding() -> None:
    """12 tokens, of which 10 may be masked: 7 in the sub branch."""

    def step(weight: float) -> Any:
        def run(model: nn.Module, x: Tensor) -> None:
            y = torch.zeros(len(x), dtype=torch.long, device="meta")
            masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(0.5), weight=weight)(x, y)

        return run

    model = classifier("Bert")
    assert step_flops(model, step(0.0), torch.ones(3, 12, dtype=torch.long)) == 3 * 3 * bert_forward(12)
    assert step_flops(model, step(0.5), torch.ones(3, 12, dtype=torch.long)) == 3 * 3 * (
        bert_forward(12) + bert_forward(7)
    )


@countable
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("megatron bert", "rembert", "roformer")])
def test_operations_can_be_counted(name: str) -> None:
    """Without the three that make an attention mask and look at its values, which a meta tensor has not."""

    def plain(model: nn.Module, x: Tensor) -> None:
        logits_of(model, {"input_ids": x})

    def sub(model: nn.Module, x: Tensor) -> None:
        with masksub.MaskSub(0.5).applied(model):
            plain(model, x)

    model: Any = CASES[name].build()
    model.config.pad_token_id = None  # else some look for padding, by value, to warn of it
    whole = step_flops(model, plain, torch.ones(2, 12, dtype=torch.long))
    masked = step_flops(model, sub, torch.ones(2, 12, dtype=torch.long))
    assert 0 < masked < 0.7 * whole if CASES[name].how == "drop" else masked == whole


def test_a_few_steps_on_film_reviews() -> None:
    """Real sentences, words as tokens: losses are finite and the sub branch reads half as much."""
    lines = shared("data/sst2/dev.txt").read_text(encoding="utf-8").splitlines()[:96]
    labels, texts = zip(*((int(line[0]), line[2:].split()) for line in lines))
    words = {word: 4 + rank for rank, word in enumerate(sorted({word for text in texts for word in text}))}
    longest = max(map(len, texts)) + 2
    model = classifier("Bert", vocab_size=4 + len(words), max_position_embeddings=longest, num_labels=2)
    seen = lengths_seen(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(0.5))
    for start in range(0, 96, 16):
        batch = [[1, *(words[word] for word in text), 2] for text in texts[start : start + 16]]
        width = max(map(len, batch))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
        out = step({"input_ids": ids, "attention_mask": (ids > 0).long()}, torch.tensor(labels[start : start + 16]))
        optimizer.step()
        optimizer.zero_grad()
        assert bool(torch.isfinite(out.loss))
        main, sub = seen[-2:]
        assert main == width and sub == 2 + (width - 2) // 2


assert all(isinstance(case, TextCase) for case in CASES.values())
