import matplotlib
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)  # tensors this small only wait for a second thread, and on a busy machine for long


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
