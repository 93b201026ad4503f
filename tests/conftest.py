import gc
import os

import pytest
import torch

os.environ["MPLBACKEND"] = "Agg"  # (not imported for it: tests/gpu has to run where there is no matplotlib)
# Tensors this small only wait for a second thread, and on a busy machine for long: here, and in processes started here.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish() -> None:
    """Leave what has been imported out of garbage collections, which search it in vain, in every worker again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
