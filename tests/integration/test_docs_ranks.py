"""Blocks of docs/ranks.md and docs/big_training.md that are for several processes, each run on two of them."""

from __future__ import annotations

import pytest

from tests.integration.processes import Forked, run_on_ranks
from tests.snippets import blocks

BEGIN = """
import copy, itertools
import torch
from torch import distributed as dist, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import TensorDataset

dist.init_process_group("gloo")
torch.manual_seed(0)
dataset = TensorDataset(torch.randn(800, 8), torch.randn(800, 1))
loss_func = nn.functional.mse_loss


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 1)])

    def forward(self, x):
        return self.layers[1](self.layers[0](x).relu())


model = Model()
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
"""
TRAIN = """
for epoch in loader.epochs(2):
    for x, y in loader:
        loss_func(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
assert loader.progress == 1 and len(loader.history) > 1
"""
END = """
if dist.get_rank() == 0:
    print("the end")
dist.destroy_process_group()
"""
SAVED = """
from adaptbs import AdaptiveDataLoader

GLOBAL_BATCH_SIZE = 32
loader = AdaptiveDataLoader(dataset, 16, shuffle=True, model=model, optimizer=optimizer)
for epoch in loader.epochs(2):
    for x, y in loader:
        loss_func(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    break
if dist.get_rank() == 0:
    torch.save({"loader": loader.state_dict()}, "checkpoint.pt")
else:
    loader.state_dict()
dist.barrier()
"""
OWN_DATA = """
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
total_samples, data = 4096, itertools.repeat(dataset[:8])
loss_of = lambda batch: loss_func(model(batch[0]), batch[1])
"""

RANKS, BIG = "docs/ranks.md", "docs/big_training.md"
PROGRAMS = {
    (RANKS, "DistributedDataParallel"): ("", TRAIN),
    (RANKS, "fully_shard"): ("", TRAIN),
    (RANKS, "checkpoint.pt"): (SAVED, "assert 0 < loader.progress < 1\n" + TRAIN),
    (BIG, "ShardedGradients"): (OWN_DATA, "assert batch.seen == total_samples and batch.noise_scale is not None\n"),
}


def test_every_block_has_its_program():
    for page in (RANKS, BIG):
        names = [name for its, name in PROGRAMS if its == page]
        assert [sum(name in block for name in names) for block in blocks(page)] == [1] * len(names)


@pytest.mark.parametrize(("page", "name"), PROGRAMS)
def test_block_runs_on_two_processes(page, name, tmp_path):
    (block,) = (block for block in blocks(page) if name in block)
    before, then = PROGRAMS[page, name]
    program = tmp_path / "program.py"
    program.write_text(BEGIN + before + block + then + END)
    code, out, err = Forked(tmp_path, run_on_ranks, program).wait(120)
    assert code == 0, err
    assert "the end" in out
