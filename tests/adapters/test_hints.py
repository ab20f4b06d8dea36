"""The line that drops the tokens of a model inside of another. If it fails, advice makes a training wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

import masksub
from masksub import MaskSub
from masksub.core.hints import hint
from tests.cases.case import logits_of
from tests.cases.hf_text import TextCase
from tests.models import CASES


class Outer(PreTrainedModel):
    """Of transformers, so that the parts are those of a class that masksub doesn't know."""

    config_class = PretrainedConfig

    def __init__(self, body: nn.Module, other: nn.Module | None = None) -> None:
        super().__init__(PretrainedConfig())
        self.body, self.other = body, other

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(*args, **kwargs)


DROPPING = [name for name, case in CASES.items() if case.how == "drop" and not isinstance(case, TextCase)]
LINE = re.compile(r"masksub\.register\(.*\)")


@pytest.mark.parametrize("name", DROPPING)
def test_the_line_that_is_named_masks_as_the_model_itself_would_be(name: str) -> None:
    """Else the advice makes a training wrong that was only expensive."""
    case = CASES[name]
    model, (x, _) = Outer(case.model()).eval(), case.inputs()
    text = hint(model)
    assert text is not None and text.startswith("body is a ")
    if (line := LINE.search(text)) is None:
        assert "one name does not say how" in text
        return
    keep = masksub.sample_keep(4, case.units, 0.5)
    with MaskSub(0.5).applied(model.body, keep=keep), torch.no_grad():
        expected = logits_of(model.body, x)
    exec(line[0], {"masksub": masksub, "Outer": Outer})
    try:
        with MaskSub(0.5).applied(model, keep=keep), torch.no_grad():
            assert torch.equal(logits_of(model, x), expected)
    finally:
        masksub.unregister(Outer)


@pytest.mark.parametrize("name", ["vit", "deit3", "cait", "torchvision vit", "hf vit", "hf dinov2", "hf siglip"])
def test_the_usual_models_have_such_a_line(name: str) -> None:
    one, two = CASES[name].model(), CASES[name].model()
    assert LINE.search(hint(Outer(one)) or "")
    assert not LINE.search(hint(Outer(one, two)) or "masksub.register()")  # it would leave the second one whole
