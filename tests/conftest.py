import matplotlib
import pytest
import torch

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
