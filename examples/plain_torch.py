"""A plain PyTorch loop. Only the loader is adaptbs's.

    python examples/plain_torch.py
"""

import argparse

import torch
from torch import nn
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader

EPOCHS, BATCH_SIZE = 5, 32


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
    steps = -(-len(dataset) // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=EPOCHS * steps)

    loader = AdaptiveDataLoader(
        dataset, BATCH_SIZE, shuffle=True,
        model=model, optimizer=optimizer, scheduler=scheduler,
    )  # fmt: skip
    for epoch in range(EPOCHS):
        losses = []
        for x, y in loader:
            loss = loss_func(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        print(f"epoch {epoch + 1}: {len(losses)} steps, loss {mean:.3f}, batch size now {loader.batch_size}")
    print(loader.history)
    print(loader.noise_scale)


if __name__ == "__main__":
    main()
