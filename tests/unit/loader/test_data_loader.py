import io
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import LinearLR, OneCycleLR
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from adaptbs import AdaptiveDataLoader

DATA = TensorDataset(torch.arange(64.0).reshape(-1, 1), torch.zeros(64, 1))


def setup(batch_size=4, lr=1e-6, **arguments):
    """A loader that, unless told otherwise, doubles its batch after each quarter, and what it works with."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    arguments = {
        "target": lambda noise_scale, batch_size, progress: 2 * batch_size, "decide_every": 0.25, "max_batch_size": 32,
        "epochs": 1, "overhead": 0, "step_time": (1, 0), **arguments,
    }  # fmt: skip
    return AdaptiveDataLoader(DATA, batch_size, model=model, optimizer=optimizer, **arguments), model, optimizer


def trained(loader, model):
    """The loader's batches, with a backward pass through each."""
    for x, y in loader:
        mse_loss(model(x), y).backward()
        yield x


def sizes(loader) -> list[int]:
    return [len(x) for x, _ in loader]


def test_the_batch_grows_in_the_middle_of_an_epoch():
    assert sizes(setup()[0]) == [4, 4, 4, 4, 8, 8, 16, 16]


def test_every_sample_is_delivered_once():
    loader = setup(shuffle=True)[0]
    seen = torch.cat([x for x, _ in loader]).flatten().int().tolist()
    assert sorted(seen) == list(range(64))
    assert seen != sorted(seen)


def test_held_at_its_start_it_delivers_what_a_stock_loader_does():
    torch.manual_seed(1)
    stock = [x.flatten().tolist() for x, _ in DataLoader(DATA, 5, shuffle=True, drop_last=True)]
    loader = setup(5, shuffle=True, drop_last=True, max_batch_size=5)[0]
    torch.manual_seed(1)
    assert [x.flatten().tolist() for x, _ in loader] == stock


def test_it_is_a_dataloader_to_all_who_ask():
    sampler = SequentialSampler(DATA)
    loader = setup(sampler=sampler, drop_last=True, num_workers=0)[0]
    assert isinstance(loader, DataLoader)
    assert loader.dataset is DATA
    assert loader.sampler is sampler
    assert loader.drop_last
    assert (loader.batch_size, len(loader)) == (4, 16)


def test_its_size_is_that_of_now_and_its_length_that_of_the_epoch():
    loader = setup()[0]
    delivered = sizes(loader)
    assert (loader.batch_size, len(loader)) == (32, len(delivered))


def test_the_batch_size_is_not_to_be_set():
    loader = setup()[0]
    with pytest.raises(ValueError, match="batch_size attribute should not be set"):
        loader.batch_size = 8
    assert loader.batch_size == 4


def test_the_optimizer_steps_at_the_scaled_learning_rate_and_shows_the_stated_one():
    loader, _, optimizer = setup(lr=0.5)
    used = []
    optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    for _ in loader:
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == 0.5
    # Linear, for SGD. The last batch was cut at 32 and keeps that learning rate, though only 16 samples were left.
    assert used == [0.5] * 4 + [1, 1, 2, 4]


def test_a_schedule_stepped_per_batch_ends_where_it_was_meant_to():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    scheduler = OneCycleLR(optimizer, max_lr=1e-6, total_steps=16)
    loader = AdaptiveDataLoader(
        DATA, 4, model=model, optimizer=optimizer, scheduler=scheduler, target=lambda *_: 16, decide_every=0.25,
        max_batch_size=16, overhead=0,
    )  # fmt: skip
    made = []
    for _ in loader:
        optimizer.step()
        scheduler.step()
        made.append(scheduler.last_epoch)
    assert made == [1, 2, 3, 4, 8, 12, 16]


def test_a_schedule_stepped_per_epoch_keeps_its_pace():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    scheduler = LinearLR(optimizer, total_iters=3)
    loader = AdaptiveDataLoader(
        DATA, 4, model=model, optimizer=optimizer, scheduler=scheduler, target=lambda *_: 16, decide_every=0.1,
        overhead=0, epochs=3,
    )  # fmt: skip
    for _ in range(3):
        for _ in loader:
            optimizer.step()
        scheduler.step()
    assert scheduler.last_epoch == 3


def test_the_length_of_the_run_is_read_from_the_scheduler(caplog):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=32)  # two epochs of 16
    loader = AdaptiveDataLoader(DATA, 4, model=model, optimizer=optimizer, scheduler=scheduler, overhead=0)
    sizes(loader)
    assert loader.history.records[-1]["progress"] == 0.5
    assert not caplog.records


def test_a_length_that_nothing_tells_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "adaptbs"):
        loader = setup(epochs=None)[0]
        assert not caplog.text  # `loader.epochs(n)` may still say it
        list(loader)
        list(loader)
    assert caplog.text.count("Give epochs=") == 1


def test_closed_it_no_longer_scales():
    loader, _, optimizer = setup()
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    loader.close()
    assert not optimizer._optimizer_step_pre_hooks


def test_without_overhead_nothing_is_measured():
    loader = setup()[0]
    sizes(loader)
    assert loader.noise_scale is None
    assert "measurement" not in loader.history.to_dict()["event"]


def test_steps_are_measured_while_they_are_made():
    loader, model, optimizer = setup(overhead=0.5)
    for x, y in loader:
        mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loader.noise_scale.measurements == loader.history.to_dict()["event"].count("measurement") > 0
    assert not any(m._forward_hooks for m in model.modules())


def test_it_goes_on_from_its_state_through_a_file():
    whole, stopped, resumed = (setup(epochs=2, max_batch_size=8, lr_scaling="sqrt")[0] for _ in range(3))
    for loader in (whole, stopped):
        sizes(loader)
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file))
    assert sizes(resumed) == sizes(whole)
    assert resumed.history.records == whole.history.records
    assert resumed.lr_factor == whole.lr_factor == pytest.approx(2**0.5)


def test_from_the_middle_of_an_epoch_the_rest_of_it_is_delivered():
    whole, stopped, resumed = (setup()[:2] for _ in range(3))
    for batch in trained(*stopped):
        if batch[0] == 16:  # the first of size 8
            state = stopped[0].state_dict()
            break
    resumed[0].load_state_dict(state)
    rest = [len(batch) for batch in trained(*resumed)]
    assert [len(batch) for batch in trained(*whole)][5:] == rest == [8, 16, 16]
    assert resumed[0].history.records == whole[0].history.records


def test_what_is_left_is_not_guessed_where_an_iteration_has_ended_inside_of_another():
    loader, model, _ = setup()
    batches = iter(loader)
    mse_loss(model(next(batches)[0]), torch.zeros(4, 1)).backward()
    next(trained(loader, model))
    with pytest.raises(RuntimeError, match="save after the next batch"):
        loader.state_dict()
    next(batches)
    assert loader.state_dict()["source"]["rest"]["order"]["position"] == 8


def test_a_look_inside_of_an_iteration_leaves_the_place_as_it_was():
    loader, model, _ = setup()
    batches = iter(loader)
    mse_loss(model(next(batches)[0]), torch.zeros(4, 1)).backward()
    before, scale = loader.state_dict(), loader.training_run.scale()
    for _ in zip(range(6), loader, strict=False):  # to batches of the next size
        pass
    assert loader.state_dict()["tracker"] == before["tracker"]
    assert loader.state_dict()["source"]["rest"] == before["source"]["rest"]
    assert loader.training_run.scale() == scale


def test_a_picture_of_the_run():
    loader = setup()[0]
    sizes(loader)
    assert len(loader.plot().axes) == 2


def test_a_second_loader_takes_the_place_of_the_first():
    """A notebook cell that builds the loader, run again: the factors of the two must not multiply."""
    run = [None, None]
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for i in range(2):
        run[i] = AdaptiveDataLoader(
            TensorDataset(torch.ones(64, 1), torch.zeros(64, 1)), 4, model=model, optimizer=optimizer,
            epochs=2, overhead=0, target=lambda *_: 8, decide_every=0.01,
        )  # fmt: skip
    used = []
    optimizer.register_step_pre_hook(lambda *_: used.append(optimizer.param_groups[0]["lr"]))
    for x, y in run[1]:
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == 0.01
    assert used[-1] == pytest.approx(0.02)
    run[0].close()
    assert len(optimizer._optimizer_step_pre_hooks) == 2, "closing the first does not undo the second"


def test_a_look_at_a_batch_in_the_middle_of_an_epoch():
    model = torch.nn.Linear(1, 1)
    loader = AdaptiveDataLoader(
        TensorDataset(torch.arange(64.0)[:, None]), 4, model=model, overhead=0, epochs=1,
        optimizer=torch.optim.SGD(model.parameters(), 0.01),
    )  # fmt: skip
    seen = []
    for i, (x,) in enumerate(loader):
        if i == 3:
            next(iter(loader))
        seen += x.flatten().tolist()
    assert seen == list(range(64))
    next(iter(loader))
    loader.state_dict()  # no epoch is under way


def test_plain_batches_are_neither_counted_nor_measured():
    model = torch.nn.Linear(1, 1)
    loader = AdaptiveDataLoader(
        TensorDataset(torch.ones(64, 1), torch.zeros(64, 1)), 4, model=model, epochs=1,
        optimizer=torch.optim.SGD(model.parameters(), 0.01),
    )  # fmt: skip
    assert len(list(loader.plain_batches())) == 16
    assert loader.training_run.controller.progress_tracker.samples == 0
    assert loader.history.to_dict()["event"] == ["start"]


def test_a_length_told_by_epochs_starts_a_run_that_the_optimizer_follows():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loader = AdaptiveDataLoader(
        TensorDataset(torch.ones(64, 1), torch.zeros(64, 1)), 4, model=model, optimizer=optimizer, overhead=0,
        target=lambda *_: 8, decide_every=0.2, max_batch_size=8,
    )  # fmt: skip
    used = []
    optimizer.register_step_pre_hook(lambda *_: used.append(optimizer.param_groups[0]["lr"]))
    for _ in loader.epochs(1):
        for xb, _ in loader:
            model(xb).sum().backward()
            optimizer.step()
    assert used[0] == 0.01
    assert used[-1] == 0.02


def test_step_is_refused_on_several_ranks_also_without_a_process_group():
    """It had divided the loss by the batches of all ranks, for a gradient of this one's."""
    loader = setup(rank=0, world_size=2, loss_func=mse_loss)[0]
    with pytest.raises(NotImplementedError, match=r"step\(\) .* several ranks"):
        loader.step(next(iter(loader)))


NUMPYS = [
    {"accumulation_steps": np.int64(2)}, {"epochs": np.int64(2)}, {"batch_size": np.int64(4)},
    {"max_batch_size": np.int64(16)}, {"base_batch_size": np.int64(4)}, {"decide_every": np.float64(0.25)},
    {"max_extra": np.float32(0.5)}, {"confidence": np.float32(0.9)}, {"overhead": np.float32(0.02)},
    {"step_time": (np.float64(1), np.float32(0))},
]  # fmt: skip


@pytest.mark.parametrize("arguments", NUMPYS, ids=lambda arguments: next(iter(arguments)))
def test_a_state_has_pythons_numbers_alone_whatever_was_given(arguments):
    loader, model, optimizer = setup(**{"epochs": None, **arguments})
    for epoch in loader.epochs(np.int64(2)):
        for _ in trained(loader, model):
            optimizer.step()
        if epoch == 0:
            break
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["length"]["epochs"] == 2
