"""Copies of buffers: only those that move are held on the device for the whole run."""

import pytest
import torch
from torch import nn

from adaptbs.model.modules import drawing_devices
from adaptbs.model.preserve import Snapshot, preserved
from tests.helpers.allocator import MiB
from tests.helpers.cuda import FakeCuda


class Masked(nn.Module):
    """A large mask that never moves, a count that moves in every pass, and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.counts = nn.BatchNorm1d(4), nn.Module()
        self.register_buffer("mask", torch.ones(MiB))
        self.counts.register_buffer("seen", torch.zeros(1))
        self.moves = False

    def forward(self, x):
        self.counts.seen += 1
        if self.moves:
            self.mask[0] += 1
        return self.norm(x) * self.mask[0]


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, wanted: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_a_mask_is_not_held_on_the_device_twice():
    with FakeCuda() as cuda:
        model = cuda.place(Masked())
        rest, before = cuda.memory.allocated, Snapshot(model)
        for _ in range(3):
            before.take(all_random=False)
            model(torch.randn(8, 4, device="cuda"))
        assert cuda.memory.allocated - rest < MiB, "the mask has 4 MiB"
        copied = cuda.to_host
        assert copied < 5 * MiB
        waits = len(cuda.waits.found)
        for _ in range(3):
            before.take(all_random=False)
            model(torch.randn(8, 4, device="cuda"))
        assert (cuda.to_host, len(cuda.waits.found)) == (copied, waits), "once, not at every step"


def test_what_begins_to_move_late_is_restored_too():
    model = Masked()
    before = Snapshot(model)
    for step in range(8):
        model.moves = step in (4, 6)  # in between it stays
        before.take()
        wanted = values(model)
        for _ in range(2):  # restored, run again in pieces, and restored once more
            model(torch.randn(8, 4))
            before.restore()
            assert same(model, wanted), step
        model(torch.randn(8, 4))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_running_statistics_that_begin_to_move_late_are_restored(kind):
    model = kind(4, track_running_stats=True).eval()
    before = Snapshot(model)
    for step in range(6):
        model.train(step > 3)
        before.take()
        wanted = values(model)
        model(torch.randn(8, 4, 3))
        before.restore()
        assert same(model, wanted), step


def test_the_random_states_of_every_replica_are_restored():
    class Replicated(nn.DataParallel):
        """DataParallel as it is made where there are three devices."""

        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module, self.device_ids = module, [0, 1, 2]

    with FakeCuda(devices=4) as cuda:
        model = nn.Sequential(Replicated(cuda.place(nn.Linear(2, 2))))
        assert drawing_devices(model) == [torch.device("cuda", i) for i in range(3)]
        with preserved(model):
            drawn = [cuda.random(i) for i in range(4)]
        again = [cuda.random(i) for i in range(4)]
        assert again[:3] == drawn[:3] and again[3] != drawn[3]
