"""Copies of buffers: only those that move are held on the device for the whole run."""

import numpy as np
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


def with_memory_of_its_own(kind: str, folder) -> nn.Module:
    """A model that has a tensor whose memory cannot be written, or has none."""
    model = nn.Sequential(Masked(), nn.Linear(4, 2))
    if kind == "attribute expanded":
        model[0].weight = torch.ones(1, 4).expand(8, 4)
    elif kind == "made in inference mode":
        with torch.inference_mode():
            model[0].teacher = nn.Linear(4, 2).requires_grad_(False)
    elif kind == "sparse and trained":
        model[0].graph = nn.Parameter(torch.eye(4).to_sparse())
    else:
        np.save(folder / "table.npy", np.ones((2, 4), dtype=np.float32))
        table = torch.from_numpy(np.load(folder / "table.npy", mmap_mode="r"))
        if kind == "attribute in a file":
            model[0].table = table
        else:
            model[0].table = nn.Parameter(table, requires_grad=False)
    return model


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(
    "kind",
    ["attribute expanded", "attribute in a file", "frozen in a file", "made in inference mode", "sparse and trained"],
)
def test_memory_that_cannot_be_written_is_left_alone(kind, tmp_path):
    model, x = with_memory_of_its_own(kind, tmp_path), torch.ones(3, 4)
    before = values(nn.Sequential(model[0].norm, model[0].counts))
    snapshot = Snapshot(model)
    for _ in range(4):
        snapshot.take()
        model(x)
        snapshot.restore()  # of a file that is only read it had ended the process
        snapshot.drop()
        assert same(nn.Sequential(model[0].norm, model[0].counts), before)


def test_a_copy_that_is_taken_at_each_step_holds_no_memory_of_weights_and_copies_no_still_tensor_again():
    model = Masked()
    model.trained, model.table = nn.Linear(4, 4), torch.ones(MiB)
    snapshot = Snapshot(model)
    for _ in range(4):
        snapshot.take(trained=False)
        copied = snapshot._attributes._values._tensors[id(model.table)]
    assert not snapshot._tensors._trained_memory
    snapshot.take(trained=False)
    assert snapshot._attributes._values._tensors[id(model.table)] is copied
    model.table[0] = 2
    snapshot.take(trained=False)
    model.table[0] = 3
    snapshot.restore()
    assert model.table[0] == 2


def _frozen(model: nn.Module) -> None:
    model.late.weight.requires_grad_(False)


REPLACED = {
    "buffer added where there was none": lambda model: model.empty.register_buffer("first", torch.ones(2)),
    "buffer added beside others": lambda model: model.counts.register_buffer("second", torch.ones(2)),
    "buffer replaced": lambda model: setattr(model.counts, "seen", torch.full((1,), 5.0)),
    "buffer removed": lambda model: delattr(model.counts, "seen"),
    "buffer on other memory": lambda model: setattr(model.counts.seen, "data", torch.full((1,), 5.0)),
    "buffer of another shape": lambda model: model.counts.seen.resize_(3).fill_(1.0),
    "parameter frozen": _frozen,
}


@pytest.mark.parametrize("change", REPLACED)
def test_tensors_that_are_others_than_at_the_copy_before_are_found(change):
    """They are looked for only where the tensors of the model are others, so all that makes them others is seen."""
    model = nn.Module()
    model.counts, model.empty, model.late, model.trained = nn.Module(), nn.Module(), nn.Linear(1, 2), nn.Linear(9, 9)
    model.counts.register_buffer("seen", torch.zeros(1))
    snapshot = Snapshot(model)
    for _ in range(4):
        snapshot.take(trained=False)
    REPLACED[change](model)
    snapshot.take(trained=False)
    wanted, shapes = values(model), {name: value.shape for name, value in model.state_dict().items()}
    with torch.no_grad():
        for tensor in (*model.buffers(), *(p for p in model.parameters() if not p.requires_grad)):
            tensor.data.add_(1)
    model.counts.seen = torch.zeros(7)  # as a pass may replace, or add, it
    snapshot.restore()
    assert same(model, wanted) and {name: value.shape for name, value in model.state_dict().items()} == shapes
