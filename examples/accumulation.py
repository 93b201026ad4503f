"""Gradient accumulation: four delivered batches make a step, because memory does not hold all at once.

    python examples/accumulation.py

Without adaptbs: `loader = DataLoader(dataset, BATCH_SIZE, shuffle=True)`. `batch_size` is the size of
a delivered batch, and `accumulation_steps=` is the number of them in a step.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader

EPOCHS, BATCH_SIZE, ACCUMULATION_STEPS = 3, 8, 4


def make_data(n: int) -> TensorDataset:
    """Ten noisy classes in 50 dimensions."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (n,), generator=generator)
    centres = torch.randn(10, 50, generator=generator)
    return TensorDataset(centres[y] + 3 * torch.randn(n, 50, generator=generator), y)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=20_000)
    args = parser.parse_args()
    torch.manual_seed(0)
    dataset, loss_func = make_data(args.samples), nn.CrossEntropyLoss()
    model = nn.Sequential(nn.Linear(50, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    loader = AdaptiveDataLoader(
        dataset, BATCH_SIZE, shuffle=True, accumulation_steps=ACCUMULATION_STEPS,
        model=model, optimizer=optimizer, epochs=EPOCHS,
    )  # fmt: skip
    for epoch in range(EPOCHS):
        for i, (x, y) in enumerate(loader):
            loss = loss_func(model(x), y)
            (loss / ACCUMULATION_STEPS).backward()
            if (i + 1) % ACCUMULATION_STEPS == 0:
                optimizer.step()
                optimizer.zero_grad()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, batch size now {loader.batch_size}")
    print(loader.history)


if __name__ == "__main__":
    main()
