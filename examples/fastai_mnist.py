"""fastai on handwritten digits: a small CNN with plain DataLoaders, on MNIST or scikit-learn's digits.

    python examples/fastai_mnist.py --data FOLDER         FOLDER contains MNIST's four .gz files
    python examples/fastai_mnist.py                       scikit-learn's 1797 digits of 8 x 8
"""

import argparse
import gzip
import math
from pathlib import Path

import fastai.callback.schedule  # noqa: F401 -- gives a Learner its fit_one_cycle
import torch
from fastai.basics import DataLoaders, Learner, accuracy, set_seed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from adaptbs.fastai import AdaptiveBatchSize

EPOCHS, BATCH_SIZE, LR = 3, 64, 3e-3


def read_mnist(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28) from 0 to 1 and labels (n,); `part` is "train" or "t10k"."""

    def read(name: str, header: int) -> Tensor:
        content = gzip.decompress((folder / f"{part}-{name}-ubyte.gz").read_bytes())
        return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8)

    return read("images-idx3", 16).view(-1, 1, 28, 28) / 255, read("labels-idx1", 8).long()


def read_digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("without --data FOLDER this example needs scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)


def make_learner(train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor], bs: int = BATCH_SIZE) -> Learner:
    set_seed(0)
    dls = DataLoaders.from_dsets(TensorDataset(*train), TensorDataset(*valid), bs=bs)
    features = 32 * math.ceil(train[0].shape[-1] / 4) ** 2
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(features, 10),
    )  # fmt: skip
    return Learner(dls, model, loss_func=F.cross_entropy, metrics=accuracy)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder of MNIST's files; scikit-learn's digits where none is given")
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--picture", type=Path, default=Path("fastai_mnist.png"))
    args = parser.parse_args()
    if args.data is None:
        print("no --data FOLDER with MNIST's files: these are scikit-learn's digits")
        (x, y), held_out = read_digits(), 297
        train, valid = (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out])
    else:
        train, valid = read_mnist(args.data, "train"), read_mnist(args.data, "t10k")
    learn = make_learner((train[0][: args.samples], train[1][: args.samples]), valid)
    callback = AdaptiveBatchSize()
    with learn.no_bar():
        learn.fit_one_cycle(EPOCHS, LR, cbs=callback)
    print(callback.history)
    print(callback.noise_scale)
    callback.plot().savefig(args.picture, dpi=120)
    print(f"picture: {args.picture}")


if __name__ == "__main__":
    main()
