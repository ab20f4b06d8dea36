"""Text classification in the Hugging Face Trainer: a small BERT on made-up sentences of different length.

    python examples/transformers_text.py

A sentence's class is the kind of word that most of it is made of. Words are dropped in the sub branch; [CLS], [SEP]
and padding never are. The gradient of an update comes from two micro-batches.
"""

import tempfile

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import masksub
from masksub.integrations.transformers import MaskSubTrainer

PAD, CLS, SEP, FIRST, KINDS, WORDS = 0, 1, 2, 3, 4, 10


def sentence(draw: np.random.Generator) -> dict[str, list[int] | int]:
    """Token ids and a label: 6 words in 10 are of the label's kind, the others of any."""
    label, length = int(draw.integers(KINDS)), int(draw.integers(6, 20))
    kinds = np.where(draw.random(length) < 0.6, label, draw.integers(KINDS, size=length))
    words = FIRST + kinds * WORDS + draw.integers(WORDS, size=length)
    return {"input_ids": [CLS, *words.tolist(), SEP], "labels": label}


def padded(batch: list[dict]) -> dict[str, torch.Tensor]:
    """As transformers' DataCollatorWithPadding, which needs a tokenizer."""
    longest = max(len(row["input_ids"]) for row in batch)
    ids = torch.tensor([row["input_ids"] + [PAD] * (longest - len(row["input_ids"])) for row in batch])
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "labels": torch.tensor([row["labels"] for row in batch]),
    }


torch.manual_seed(0)
draw = np.random.default_rng(0)
rows = [sentence(draw) for _ in range(1280)]
model = BertForSequenceClassification(
    BertConfig(
        vocab_size=FIRST + KINDS * WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, num_labels=KINDS, pad_token_id=PAD,
    )
)  # fmt: skip
# The loss of BERT is a mean, and must not be taken as divided by the items of an update (transformers#47688).
model.accepts_loss_kwargs = False

with tempfile.TemporaryDirectory() as folder:
    trainer = MaskSubTrainer(
        sub=masksub.MaskSub(ratio=0.3),
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            num_train_epochs=3,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            per_device_eval_batch_size=256,
            learning_rate=3e-3,
            logging_steps=16,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        data_collator=padded,
        train_dataset=rows[:1024],
        eval_dataset=rows[1024:],
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    trainer.train()
    last = [line for line in trainer.state.log_history if "loss_sub" in line][-1]
    print(f"main {last['loss_main']:.3f}, sub {last['loss_sub']:.3f}")
    print(f"accuracy on whole sentences: {trainer.evaluate()['eval_accuracy']:.3f}")
