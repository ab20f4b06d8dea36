"""Small models, data and trainers for the tests of the Trainer's integration; nothing is downloaded or shuffled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from masksub.integrations.transformers import MaskSubMixin
from tests.integrations.reference import LEARNING_RATE, PIXELS, SEED, Batches

BODY: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 5,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def hf_vit(**changes: Any) -> nn.Module:
    """A random ViT of 2 layers x 24 on PIXELS x PIXELS images; its loss is divided by ``num_items_in_batch``."""
    torch.manual_seed(0)
    return hf.ViTForImageClassification(hf.ViTConfig(**{**BODY, "image_size": PIXELS, "patch_size": 4, **changes}))


def hf_bert(**changes: Any) -> nn.Module:
    """A random BERT whose loss is a mean, whatever keywords its forward accepts."""
    torch.manual_seed(0)
    return hf.BertForSequenceClassification(hf.BertConfig(**{**BODY, "vocab_size": 40, **changes}))


def hf_ast(**changes: Any) -> nn.Module:
    """A random audio spectrogram transformer for 16 mel bins x 32 frames."""
    torch.manual_seed(0)
    sizes = {"num_mel_bins": 16, "max_length": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    return hf.ASTForAudioClassification(hf.ASTConfig(**{**BODY, **sizes, **changes}))


def divided(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A ``compute_loss_func`` as the Trainer asks for it: the sum over the batch divided by the items of the update."""
    logits = getattr(outputs, "logits", outputs)
    return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


def rows(data: Batches, name: str = "pixel_values", processes: int = 1) -> list[dict[str, Any]]:
    """Micro-batches as the rows of a data set; each process takes every ``processes``-th of a micro-batch."""
    return [
        {name: x[row], "labels": y[row]}
        for x, y in data
        for rank in range(processes)
        for row in range(rank, len(x), processes)
    ]


class InOrder(hf.Trainer):
    """A user's own Trainer: takes the data in order."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class Ours(MaskSubMixin, InOrder):
    """The same with a sub branch."""


class Gradients(hf.TrainerCallback):
    """Keeps the gradients of each update, clipped as they are used."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.seen.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def arguments(folder: Path, **changes: Any) -> hf.TrainingArguments:
    """Plain SGD without clipping on the CPU, as the reference; nothing saved, no progress shown."""
    return hf.TrainingArguments(
        **{
            "output_dir": str(folder), "use_cpu": True, "seed": SEED, "optim": "sgd", "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "per_device_train_batch_size": 8,
            "num_train_epochs": 1, "save_strategy": "no", "logging_strategy": "no", "report_to": [],
            "label_names": ["labels"], "disable_tqdm": True, "dataloader_pin_memory": False, **changes,
        }
    )  # fmt: skip
