"""Blocks of accelerate.md, lightning.md and transformers.md: the script that each diff leads to, run to its end."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.snippets import after, blocks


def needs(trainer: str) -> None:
    if importlib.util.find_spec(trainer) is None:
        pytest.skip(f"needs {trainer}: `make trainers` runs it in .venv-trainers")


def run(script: str, page: str, names: dict) -> dict:
    exec(compile(script, page, "exec"), names)
    return names


@pytest.fixture
def mlp():
    dataset = TensorDataset(torch.randn(640, 8), torch.randn(640, 1))
    return dataset, nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))


def test_the_loop_of_accelerate(mlp):
    needs("accelerate")
    from accelerate import Accelerator

    from tests.integration.trainers.accelerate_programs import forget_accelerate

    dataset, model = mlp
    optimizer, loader = torch.optim.AdamW(model.parameters(), 1e-3), DataLoader(dataset, 16, shuffle=True)
    body = "accelerator.backward(loss_func(model(x), y))\noptimizer.step()\nscheduler.step()\noptimizer.zero_grad()"
    (diff,) = blocks("docs/accelerate.md", "diff")
    names = {
        "accelerator": Accelerator(cpu=True), "model": model, "optimizer": optimizer, "loader": loader, "epochs": 2,
        "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=2 * len(loader)),
        "loss_func": nn.functional.mse_loss,
    }  # fmt: skip
    run(after(diff, body), "accelerate.md", names)
    forget_accelerate()
    assert names["loader"].progress == 1 and names["loader"].noise_scale is not None


def test_the_fit_of_lightning(mlp, tmp_path, monkeypatch):
    needs("lightning")
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp[1]

        def training_step(self, batch, batch_idx):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-3)

    monkeypatch.chdir(tmp_path)
    (diff,) = blocks("docs/lightning.md", "diff")
    trainer = run(
        after(diff), "lightning.md",
        {"Trainer": lightning.Trainer, "DataLoader": DataLoader, "module": Module(), "train": mlp[0], "valid": mlp[0]},
    )["trainer"]  # fmt: skip
    (callback,) = (c for c in trainer.callbacks if type(c).__module__.startswith("adaptbs"))
    assert callback.noise_scale is not None and callback.progress == 1


def test_the_trainer_of_transformers(tmp_path):
    needs("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM, Seq2SeqTrainingArguments

    tokens = torch.randint(0, 32, (160, 8))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    args = Seq2SeqTrainingArguments(  # which the page's second block needs

        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=8, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    (diff,), (mixin, split) = blocks("docs/transformers.md", "diff"), blocks("docs/transformers.md")
    names = {"model": LlamaForCausalLM(config), "args": args, "train_dataset": rows, "eval_dataset": rows[:16]}
    names = run(after(diff), "transformers.md", names)
    assert names["trainer"].adaptive.noise_scale is not None
    mine = run(mixin, "transformers.md", {})["MyTrainer"]
    trainer = mine(model=LlamaForCausalLM(config), args=args, train_dataset=rows)
    trainer.train()
    assert trainer.adaptive.noise_scale is not None
    pairs = run(split, "transformers.md", {})["pairs"]
    cut = pairs({"input_ids": torch.arange(6), "ref_chosen_logps": torch.arange(3)}, 1, 3)
    assert {name: t.tolist() for name, t in cut.items()} == {"input_ids": [1, 2, 4, 5], "ref_chosen_logps": [1, 2]}
