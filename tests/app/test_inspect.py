"""``masksub inspect`` as a person meets it. If these fail, it speaks of another model, or shows a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from masksub.app.errors import InputError
from masksub.app.inspect import inspect_named
from masksub.app.named_models import build_named
from masksub.cli import app


@pytest.mark.parametrize(
    ("name", "how", "units"),
    [
        ("vit_tiny_patch16_224", "drop", 16),
        ("torchvision:resnet18", "pixels", 4),
        ("hf:ViTForImageClassification", "drop", 16),
        ("hf:resnet", "pixels", 4),
    ],
)
def test_names_of_three_libraries(name: str, how: str, units: int) -> None:
    found = inspect_named(name, image_size=64, batch_size=2, measure=False)
    assert (found.how, found.units) == (how, units)


def test_a_folder_with_a_configuration(tmp_path: Path) -> None:
    import transformers

    config = transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_heads=2, n_layers=1, hidden_dim=32, max_position_embeddings=20,
        architectures=["DistilBertForSequenceClassification"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    model, batch = build_named(f"hf:{tmp_path}", batch=3)
    assert type(model).__name__ == "DistilBertForSequenceClassification"
    assert isinstance(batch, dict) and batch["input_ids"].shape == (3, 18)
    assert inspect_named(f"hf:{tmp_path}", batch_size=3, measure=False).how == "drop"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vit_tiny_patch16_244"], "did you mean vit_tiny_patch16_224"),
        (["vit_smal"], "did you mean vit_small_"),
        (["torchvision:resnet19"], "torchvision has no model 'resnet19'; did you mean resnet18"),
        (["hf:BertForSequenceClasification"], "did you mean BertForSequenceClassification"),
        (["hub:vit"], "a timm name, torchvision:NAME or hf:ARCHITECTURE"),
        (["vit_tiny_patch16_224", "--variant", "masksub+drop"], "variant = 'drop': one of masksub, dropsub"),
        (["vit_tiny_patch16_224", "--ratio", "1"], "ratio = 1.0"),
        (["vit_tiny_patch16_224", "--variant", "masksub+cosub"], "CoSub draws both branches"),
        (["vit_tiny_patch16_224", "--unit", "24", "--no-measure"], "unit = 24 px: this model's patches are 16 x 16"),
        (["swin_tiny_patch4_window7_224", "--image-size", "2"], "does not run on a batch of shape (8, 3, 2, 2)"),
    ],
)
def test_wrong_input_is_named(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["inspect", *arguments])
    assert isinstance(result.exception, InputError) and message in str(result.exception)
