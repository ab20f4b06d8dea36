"""Image classification in the Hugging Face Trainer: a small ViT on scikit-learn's 8 x 8 digits.

    python examples/transformers_image.py

Nothing is downloaded. In a script of yours the lines to change are those marked "masksub".
"""

import tempfile

import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

import masksub  # masksub
from masksub.integrations.transformers import MaskSubTrainer  # masksub: in place of transformers.Trainer

torch.manual_seed(0)
digits = load_digits()
rows = [
    {"pixel_values": torch.tensor(image, dtype=torch.float32)[None] / 8 - 1, "labels": int(label)}
    for image, label in zip(digits.images, digits.target)
]
model = ViTForImageClassification(
    ViTConfig(
        image_size=8, patch_size=2, num_channels=1, num_labels=10, hidden_size=48, intermediate_size=96,
        num_hidden_layers=3, num_attention_heads=3,
    )
)  # fmt: skip

with tempfile.TemporaryDirectory() as folder:
    trainer = MaskSubTrainer(
        sub=masksub.MaskSub(ratio=0.5),  # masksub
        weight=0.5,  # masksub
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            num_train_epochs=4,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=256,
            learning_rate=3e-3,
            warmup_steps=10,
            logging_steps=32,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows[:1024],
        eval_dataset=rows[1024:],
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    trainer.train()
    last = [line for line in trainer.state.log_history if "loss_sub" in line][-1]
    print(f"main {last['loss_main']:.3f}, sub {last['loss_sub']:.3f}")
    print(f"accuracy on unmasked images: {trainer.evaluate()['eval_accuracy']:.3f}")
