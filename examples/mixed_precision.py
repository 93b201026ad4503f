"""Automatic mixed precision, as in torch's recipe: float16 and a GradScaler on CUDA, bfloat16 on a CPU.

    python examples/mixed_precision.py

Without adaptbs: `loader = DataLoader(dataset, BATCH_SIZE, shuffle=True)`.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader

EPOCHS, BATCH_SIZE = 3, 32
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16 if DEVICE == "cuda" else torch.bfloat16


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE, DTYPE)


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
    model = nn.Sequential(nn.Linear(50, 128), nn.ReLU(), nn.Linear(128, 10)).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler(DEVICE, enabled=DEVICE == "cuda")

    loader = AdaptiveDataLoader(
        dataset, BATCH_SIZE, shuffle=True,
        model=model, optimizer=optimizer, epochs=EPOCHS,
    )  # fmt: skip
    for epoch in range(EPOCHS):
        for x, y in loader:
            with autocast():
                loss = loss_func(model(x.to(DEVICE)), y.to(DEVICE))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, batch size now {loader.batch_size}")
    print(loader.history)


if __name__ == "__main__":
    main()
