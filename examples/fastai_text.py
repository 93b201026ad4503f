"""fastai's AWD-LSTM, from scratch: from which module of Python's standard library does a line of code come?

    python examples/fastai_text.py

fastai sorts lines by length within 50 batches, and pads them. A growing batch keeps both.
"""

import argparse
import difflib
import inspect
import random
import re
import tarfile
from pathlib import Path

from fastai.text.all import (
    AWD_LSTM,
    CategoryBlock,
    DataBlock,
    ItemGetter,
    Learner,
    RandomSplitter,
    TextBlock,
    accuracy,
    set_seed,
    text_classifier_learner,
)

from adaptbs.fastai import AdaptiveBatchSize

EPOCHS, BATCH_SIZE, LR = 4, 16, 5e-3
MODULES = (argparse, difflib, inspect, random, tarfile)
SMALL = {"emb_sz": 64, "n_hid": 64, "n_layers": 1}  # instead of 400, 1152 and 3, because this text is short
LONGEST = 24  # words that the LSTM reads at once


def read_lines(samples: int) -> list[tuple[str, str]]:
    """(line, module) in random order."""
    sources = [(inspect.getsource(module), module.__name__) for module in MODULES]
    lines = [(line.strip(), name) for text, name in sources for line in text.splitlines() if len(line.split()) > 2]
    random.Random(0).shuffle(lines)
    return lines[:samples]


def words(line: str):  # (no return type, because fastai would try to convert to it)
    return re.findall(r"\w+|[^\w\s]", line)


def make_learner(lines: list[tuple[str, str]], bs: int = BATCH_SIZE) -> Learner:
    set_seed(0)
    blocks = (TextBlock(words, seq_len=LONGEST), CategoryBlock)
    block = DataBlock(blocks, get_x=ItemGetter(0), get_y=ItemGetter(1), splitter=RandomSplitter(0.2, seed=0))
    dls = block.dataloaders(lines, bs=bs)
    return text_classifier_learner(dls, AWD_LSTM, config=SMALL, seq_len=LONGEST, pretrained=False, metrics=accuracy)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--picture", type=Path, default=Path("fastai_text.png"))
    args = parser.parse_args()
    learn = make_learner(read_lines(args.samples))
    callback = AdaptiveBatchSize()
    with learn.no_bar():
        learn.fit_one_cycle(EPOCHS, LR, cbs=callback)
    print(callback.history)
    print(callback.noise_scale)
    callback.plot().savefig(args.picture, dpi=120)
    print(f"picture: {args.picture}")


if __name__ == "__main__":
    main()
