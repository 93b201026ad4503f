"""A loop for large training runs, like torchtitan's: the global batch grows by accumulation, guided by a planned ramp.

    python examples/global_batch.py
    python examples/global_batch.py --log-only    # trains as planned, and logs what it would have done

A byte-level model reads Python's own standard library. Without adaptbs: `accumulation_steps` is a constant.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from adaptbs import GlobalBatch
from adaptbs.gradients import AccumulatedGradients

MICRO_BATCH_SIZE, LENGTH, WIDTH = 4, 64, 64


class ByteModel(nn.Module):
    """A transformer of one layer that predicts the next byte."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.position.weight
        return self.head(self.layer(x, src_mask=self.mask, is_causal=True))


def micro_batches(generator: torch.Generator):
    """Windows of LENGTH + 1 bytes from random places, without end."""
    files = sorted(Path(argparse.__file__).parent.glob("*.py"))[:40]
    text = torch.tensor(list(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)
    while True:
        at = torch.randint(len(text) - LENGTH, (MICRO_BATCH_SIZE, 1), generator=generator)
        window = text[at + torch.arange(LENGTH + 1)].long()
        yield window[:, :-1], window[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=20_000, help="windows to train on")
    parser.add_argument("--log-only", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    model, data = ByteModel(), micro_batches(torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    batch = GlobalBatch(
        8, micro_batch_size=MICRO_BATCH_SIZE, total=args.samples, acts=not args.log_only,
        ramp=[(0.2 * args.samples, 16), (0.5 * args.samples, 32)],
    )  # fmt: skip
    # The schedule follows the samples seen. Larger batches make fewer steps, so a count of steps would end too late.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5 + 0.5 * math.cos(math.pi * batch.progress))
    watch = AccumulatedGradients(model)
    while batch.seen < batch.total:
        for _ in range(batch.accumulation_steps):
            tokens, targets = next(data)
            loss = cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
            (loss / batch.accumulation_steps).backward()
        norms = watch.norms(MICRO_BATCH_SIZE)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        batch.step(norms)
        scheduler.step()
    print(f"loss {loss.item():.2f}, {batch}, learning rate {scheduler.get_last_lr()[0]:.1e}")
    print(batch.history)


if __name__ == "__main__":
    main()
