"""A fit with Lightning: gradient accumulation, a schedule, validations within the epoch and checkpoints.

    python examples/lightning_fit.py
    torchrun --nproc-per-node 2 examples/lightning_fit.py

adaptbs needs only the marked lines. `pip install "adaptbs[lightning]"`
"""

import argparse
import os

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset, random_split

from adaptbs.lightning import AdaptiveBatchSize  # (1)

EPOCHS, BATCH_SIZE, ACCUMULATION_STEPS = 4, 16, 2


def make_data(n: int) -> TensorDataset:
    """Ten noisy classes in 50 dimensions."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (n,), generator=generator)
    centres = torch.randn(10, 50, generator=generator)
    return TensorDataset(centres[y] + 3 * torch.randn(n, 50, generator=generator), y)


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(50, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        right = (self.net(x).argmax(1) == y).float().mean()
        self.log("right", right, batch_size=len(y), sync_dist=True)

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            right, rate = self.trainer.callback_metrics["right"], self.trainer.optimizers[0].param_groups[0]["lr"]
            self.print(f"step {self.trainer.global_step}: right {right:.3f}, learning rate {rate:.1e}")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, 3e-3, total_steps=steps), "interval": "step"}]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--resume", help="a checkpoint to go on from")
    args = parser.parse_args()
    seed_everything(0)
    train, valid = random_split(make_data(args.samples), [0.8, 0.2])
    batch, saving = AdaptiveBatchSize(), ModelCheckpoint("checkpoints", "{step}", every_n_train_steps=100)  # (2)
    trainer = Trainer(
        max_epochs=EPOCHS, accumulate_grad_batches=ACCUMULATION_STEPS, gradient_clip_val=1.0, val_check_interval=0.5,
        callbacks=[batch, saving],  # (3)
        accelerator="cpu", devices=int(os.environ.get("WORLD_SIZE", 1)), logger=False, enable_progress_bar=False,
    )  # fmt: skip
    loaders = DataLoader(train, BATCH_SIZE, shuffle=True), DataLoader(valid, 500)
    trainer.fit(Classifier(), *loaders, ckpt_path=args.resume)
    if trainer.is_global_zero:
        print(f"batch size now {batch.batch_size}, step {trainer.global_step}")
        print(batch.history)


if __name__ == "__main__":
    main()
