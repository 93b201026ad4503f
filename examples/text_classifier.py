"""From which module of Python's standard library does a line of code come? An EmbeddingBag, and a collate that pads.

    python examples/text_classifier.py

Without adaptbs: `loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, collate_fn=pad)`.

Bags are padded, not joined with offsets. A step is measured example by example, so the first dimension of a layer's
input must be the batch.
"""

import argparse
import difflib
import inspect
import random
import re
import tarfile
import zlib

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from adaptbs import AdaptiveDataLoader

EPOCHS, BATCH_SIZE, WORDS = 4, 16, 5000
MODULES = (argparse, difflib, inspect, random, tarfile)


def encode(line: str) -> torch.Tensor:
    """Word numbers from 1; 0 is padding. (crc32, because Python's own hash differs from run to run.)"""
    words = re.findall(r"\w+|[^\w\s]", line)
    return torch.tensor([1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in words])


def read_lines() -> list[tuple[torch.Tensor, int]]:
    sources = [(inspect.getsource(module), label) for label, module in enumerate(MODULES)]
    return [(encode(line), label) for text, label in sources for line in text.splitlines() if len(line.split()) > 2]


def pad(batch: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    lines, labels = zip(*batch, strict=True)
    return pad_sequence(lines, batch_first=True), torch.tensor(labels)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=6000)
    args = parser.parse_args()
    torch.manual_seed(0)
    lines = read_lines()
    random.Random(0).shuffle(lines)
    held_out, dataset = lines[:1000], lines[1000 : 1000 + args.samples]
    model = nn.Sequential(nn.EmbeddingBag(WORDS, 64, mode="mean", padding_idx=0), nn.Linear(64, len(MODULES)))
    loss_func = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    loader = AdaptiveDataLoader(
        dataset, BATCH_SIZE, shuffle=True, collate_fn=pad,
        model=model, optimizer=optimizer, epochs=EPOCHS,
    )  # fmt: skip
    for epoch in range(EPOCHS):
        for text, label in loader:
            optimizer.zero_grad()
            loss_func(model(text), label).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        x, y = pad(held_out)
        with torch.no_grad():
            correct = (model(x).argmax(1) == y).float().mean().item()
        print(f"epoch {epoch + 1}: accuracy {correct:.1%}, batch size now {loader.batch_size}")
    print(loader.history)


if __name__ == "__main__":
    main()
