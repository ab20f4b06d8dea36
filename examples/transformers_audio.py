"""Audio classification in the Hugging Face Trainer: a small spectrogram transformer on made-up tones.

    python examples/transformers_audio.py

A class is a pitch in noise. The Trainer is the user's own, with class weights in its loss: the mixin comes first, and
``target`` says that the loss is a cross-entropy.
"""

import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ASTConfig, ASTForAudioClassification, Trainer, TrainingArguments

import masksub
from masksub.integrations.transformers import MaskSubMixin

MELS, FRAMES, PITCHES = 16, 64, 2


class WeightedTrainer(Trainer):
    """A Trainer that somebody has: class weights in the loss."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """Cross-entropy with class weights, a mean over the batch."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0]))
        return (loss, outputs) if return_outputs else loss


class MaskSubWeightedTrainer(MaskSubMixin, WeightedTrainer):
    """The same with a sub branch."""


def sound(draw: np.random.Generator) -> dict[str, torch.Tensor | int]:
    """A spectrogram (FRAMES, MELS) with one tone for a part of the time, and its pitch."""
    label, start = int(draw.integers(PITCHES)), int(draw.integers(FRAMES // 2))
    spectrogram = draw.normal(size=(FRAMES, MELS)).astype(np.float32)
    spectrogram[start : start + FRAMES // 2, 8 * label + 2 : 8 * label + 4] += 4
    return {"input_values": torch.from_numpy(spectrogram), "labels": label}


torch.manual_seed(0)
draw = np.random.default_rng(0)
rows = [sound(draw) for _ in range(640)]
model = ASTForAudioClassification(
    ASTConfig(
        num_mel_bins=MELS, max_length=FRAMES, patch_size=8, frequency_stride=8, time_stride=8, num_labels=PITCHES,
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    )
)  # fmt: skip

with tempfile.TemporaryDirectory() as folder:
    trainer = MaskSubWeightedTrainer(
        sub=masksub.MaskSub(ratio=0.5),
        target="softmax",
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            num_train_epochs=5,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=128,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            logging_steps=16,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows[:512],
        eval_dataset=rows[512:],
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    trainer.train()
    last = [line for line in trainer.state.log_history if "loss_sub" in line][-1]
    print(f"main {last['loss_main']:.3f}, sub {last['loss_sub']:.3f}")
    print(f"accuracy on whole spectrograms: {trainer.evaluate()['eval_accuracy']:.3f}")
