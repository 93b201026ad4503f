"""MNIST's 70,000 handwritten digits, from a folder or downloaded into it."""

from __future__ import annotations

import gzip
import hashlib
import urllib.request
from pathlib import Path

import torch
from torch import Tensor

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = {  # name: MD5 of what is in it
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}
CACHE = Path.home() / ".cache" / "adaptbs" / "mnist"


def load(folder: Path | None = None, *, train: bool = True) -> tuple[Tensor, Tensor]:
    """(images (n, 1, 28, 28) of mean 0 and variance 1, labels (n,)).

    Args:
        folder: holds the four files; None downloads them (12 MB) into the user's cache.
        train: the 60,000 for training, or the 10,000 held out.
    """
    images, labels = list(FILES)[:2] if train else list(FILES)[2:]
    raw = torch.frombuffer(bytearray(_read(folder, images)[16:]), dtype=torch.uint8)
    x = (raw.reshape(-1, 1, 28, 28).float() / 255 - 0.1307) / 0.3081
    return x, torch.frombuffer(bytearray(_read(folder, labels)[8:]), dtype=torch.uint8).long()


def _read(folder: Path | None, name: str) -> bytes:
    path = (folder or CACHE) / name
    if folder is None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(urllib.request.urlopen(MIRROR + name, timeout=60).read())
    content = gzip.decompress(path.read_bytes())
    if hashlib.md5(content).hexdigest() != FILES[name]:
        raise SystemExit(f"{path} is not MNIST's {name}: remove it and try again")
    return content
