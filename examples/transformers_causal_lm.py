"""A small language model in Hugging Face's Trainer. The batch grows by gradient accumulation at a fixed micro-batch.

    python examples/transformers_causal_lm.py
    torchrun --nproc-per-node 2 examples/transformers_causal_lm.py

It learns the reference pages of Python's help, byte by byte. adaptbs needs the marked lines, the second only to
accumulate. `pip install "adaptbs[transformers]"`
"""

import argparse
from pydoc_data.topics import topics

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, set_seed

from adaptbs.transformers import AdaptiveTrainer  # (1) instead of transformers.Trainer

LENGTH, MICRO_BATCH_SIZE, EPOCHS = 64, 2, 3


class Text(Dataset):
    """Pieces of a text, as bytes."""

    def __init__(self, text: str, pieces: int) -> None:
        tokens = torch.tensor(list(text.encode()[: pieces * LENGTH]))
        self.pieces = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.pieces[i], "labels": self.pieces[i]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--out", default="checkpoints")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    options = parser.parse_args()
    text = "\n\n".join(topics.values())
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=LENGTH, tie_word_embeddings=True,
        )
    )  # fmt: skip
    args = TrainingArguments(
        options.out, num_train_epochs=EPOCHS, per_device_train_batch_size=MICRO_BATCH_SIZE, learning_rate=1e-3,
        lr_scheduler_type="cosine", warmup_steps=0.05, logging_steps=0.05, eval_strategy="steps", eval_steps=0.25,
        save_steps=0.25, use_cpu=not torch.cuda.is_available(), report_to="none",
    )  # fmt: skip
    trainer = AdaptiveTrainer(
        model=model, args=args,
        train_dataset=Text(text, options.samples), eval_dataset=Text(text[-LENGTH * 200 :], 200),
        by_accumulation=True, target="noise_scale",  # (2) the micro-batch stays, and more of them make a step
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=options.resume)
    if trainer.is_world_process_zero():
        print(f"batch size now {trainer.adaptive.global_batch_size}, noise scale {trainer.adaptive.noise_scale}")
        print(trainer.adaptive.history)


if __name__ == "__main__":
    main()
