"""adaptbs.accelerate on one process: the loop as it is written for accelerate, with the stock loader and with ours."""

from __future__ import annotations

import gc
import logging
import weakref
from contextlib import nullcontext
from functools import partial

import pytest
import torch

accelerate = pytest.importorskip("accelerate", reason="needs accelerate: `make trainers` runs it in .venv-trainers")

from accelerate import Accelerator, skip_first_batches  # noqa: E402
from accelerate.utils import DataLoaderConfiguration  # noqa: E402
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, StepLR  # noqa: E402
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler  # noqa: E402

from adaptbs import AdaptiveDataLoader  # noqa: E402
from adaptbs.accelerate import AcceleratedLoader, adaptive  # noqa: E402
from tests.integration.trainers.accelerate_programs import (  # noqa: E402
    BATCH,
    EPOCHS,
    UNEVEN,
    Run,
    forget_accelerate,
    growing,
    network,
    resumed,
    trained,
)
from tests.integration.training import Numbered  # noqa: E402

PARTS = pytest.mark.parametrize("parts", [1, 2])
WAYS = pytest.mark.parametrize("way", ["adaptive", "unprepared"])


@pytest.fixture(autouse=True)
def forgotten():
    yield
    forget_accelerate()


def linear(step: int, num_training_steps: int) -> float:
    return max(1 - step / num_training_steps, 0.0)


def hugging_face(optimizer, total):
    return LambdaLR(optimizer, partial(linear, num_training_steps=total))


class FromGlobalRandomness(Numbered):
    """Draws as a random transform does, so that it shows whether batches are fetched when stock's are."""

    def __getitem__(self, i):
        x, y, _ = super().__getitem__(i)
        return x + 0.1 * torch.randn(8), y, i


@WAYS
@pytest.mark.parametrize(
    ("parts", "how", "precision"),
    [
        (1, {}, "no"),
        (2, {}, "no"),
        (2, {"drop_last": True}, "no"),
        (1, {"num_workers": 2}, "no"),
        (1, {"shuffle": False}, "no"),
        (2, {}, "bf16"),
    ],
    ids=["plain", "accumulated", "drop_last", "workers", "in order", "bfloat16"],
)
def test_with_growth_off_the_weights_are_bit_for_bit_stocks(way, parts, how, precision):
    same = {"parts": parts, "loader": how, "configuration": {"mixed_precision": precision}}
    stock, ours = trained("stock", **same), trained(way, overhead=0, **same)
    assert torch.equal(ours["last"], stock["last"])
    for name in ("lrs", "steps", "ends", "place", "sizes"):
        assert ours[name] == stock[name], name
    assert all(map(torch.equal, ours["indices"], stock["indices"]))


def test_with_growth_off_random_transforms_draw_what_they_draw_with_stock(monkeypatch):
    monkeypatch.setattr("tests.integration.trainers.accelerate_programs.Numbered", FromGlobalRandomness)
    assert torch.equal(trained("adaptive", overhead=0)["last"], trained("stock")["last"])


@WAYS
def test_accelerates_seedable_sampler_keeps_its_order_and_goes_on_in_it(tmp_path, way):
    data = {"use_seedable_sampler": True, "data_seed": 5}
    seedable = {"configuration": {"data": data, "rng_types": ["torch", "generator"]}}
    stock, off = trained("stock", **seedable), trained(way, overhead=0, **seedable)
    assert all(map(torch.equal, off["indices"], stock["indices"]))
    assert torch.equal(off["last"], stock["last"])
    made = resumed(str(tmp_path), 34, **growing(1), **seedable)
    assert all(map(torch.equal, made["rest"]["indices"], made["whole"]["indices"][34:]))
    assert torch.equal(made["rest"]["last"], made["whole"]["last"])


@WAYS
def test_a_generator_that_accelerate_takes_off_the_loader_is_not_drawn_from(way):
    """As with batches that are dispatched: an unprepared loader had drawn its workers' seeds from it."""

    def train(way, **arguments):
        how = {"generator": torch.Generator().manual_seed(3)}
        return trained(way, loader=how, configuration={"data": {"dispatch_batches": True}}, **arguments)

    stock, off = train("stock"), train(way, overhead=0)
    assert all(map(torch.equal, off["indices"], stock["indices"])) and torch.equal(off["last"], stock["last"])


def test_a_stateful_data_loader_is_taken_over():
    """It shuffles in a way of its own, which is not taken over."""
    pytest.importorskip("torchdata", reason="needs torchdata: `make trainers` runs it in .venv-trainers")
    seen = trained("adaptive", configuration={"data": {"use_stateful_dataloader": True}}, **growing(1))
    assert max(seen["sizes"]) >= 32 and seen["place"] == seen["total"]
    assert [sorted(epoch.tolist()) for epoch in seen["epochs"]] == [list(range(UNEVEN))] * EPOCHS


def test_a_state_that_was_saved_without_adaptbs_is_refused(tmp_path):
    Run("stock").accelerator.save_state(str(tmp_path))
    with pytest.raises(RuntimeError, match="does not match the number of registered objects"):
        Run("adaptive", **growing(1)).accelerator.load_state(str(tmp_path))


@PARTS
@WAYS
def test_the_batch_grows_and_every_sample_is_counted(way, parts):
    seen = trained(way, parts=parts, clip=1.0, **growing(1, parts))
    assert {8, 16, 32} <= set(seen["sizes"])
    assert sum(seen["steps"]) < 0.6 * seen["total"]
    assert [sorted(epoch.tolist()) for epoch in seen["epochs"]] == [list(range(UNEVEN))] * EPOCHS
    assert [record["event"] for record in seen["history"]].count("measurement") > 3
    assert all(record["doubt"] is None for record in seen["history"] if record["event"] == "measurement")
    assert [torch.equal(a, b) for a, b in zip(seen["gathered"], seen["indices"], strict=True)]


@PARTS
@pytest.mark.parametrize("schedule", [None, hugging_face], ids=["one-cycle", "Hugging Face"])
@pytest.mark.parametrize("epochs", [EPOCHS, None], ids=["said", "by the scheduler"])
def test_the_schedule_ends_where_it_would_and_is_at_its_place_after_each_epoch(parts, schedule, epochs):
    same = {"parts": parts} | ({"schedule": schedule} if schedule else {})
    stock = trained("stock", **same)
    ours = trained("adaptive", **same, **growing(1, parts, said=epochs))
    assert max(ours["sizes"]) >= 32
    assert ours["place"] == stock["place"] == stock["total"]

    def after_epochs(seen):
        return [lr for lr, is_last in zip(seen["lrs"], seen["ends"], strict=True) if is_last]

    assert after_epochs(ours) == after_epochs(stock)


@PARTS
def test_accumulate_steps_at_the_last_batch_of_each_epoch_and_at_whole_steps(parts):
    seen = trained("adaptive", parts=parts, **growing(1, parts))
    assert sum(seen["ends"]) == EPOCHS
    within = 0
    for is_last, steps in zip(seen["ends"], seen["steps"], strict=True):
        within += 1
        assert steps == (is_last or within == parts)
        if steps:
            within = 0


@PARTS
@pytest.mark.parametrize("after", [14, 26, 28, 34, 40])
def test_a_resume_within_an_epoch_ends_in_the_weights_of_the_unbroken_run(tmp_path, parts, after):
    """After a whole step: accelerate does not save the gradients of one that is being accumulated."""
    made = resumed(str(tmp_path), after, parts=parts, **growing(1, parts))
    whole, rest = made["whole"], made["rest"]
    assert torch.equal(rest["last"], whole["last"])
    assert len(rest["indices"]) == len(whole["indices"]) - after
    assert all(map(torch.equal, rest["indices"], whole["indices"][after:]))
    assert rest["lrs"] == whole["lrs"][after:]
    assert rest["place"] == whole["place"] == whole["total"]


@PARTS
@pytest.mark.parametrize("number", [1, 3])
def test_a_look_at_batches_is_no_part_of_the_run(parts, number):
    """Each had counted as an epoch that was broken off."""
    run = Run("adaptive", parts=parts, **growing(1, parts))

    def epochs():
        for epoch in range(EPOCHS):
            for _ in zip(range(number), run.loader, strict=False):
                pass
            yield epoch

    run.train(epochs=epochs())
    progress = run.loader.training_run.controller.progress_tracker
    assert progress.samples == sum(run.seen["sizes"]) == EPOCHS * UNEVEN and progress.epoch == EPOCHS
    assert max(run.seen["sizes"]) > 2 * BATCH and run.scheduler.scheduler.last_epoch == run.total
    assert not any(p._post_accumulate_grad_hooks for p in run.model.parameters()), "nothing is watched any more"


def test_a_rest_of_one_batch_is_trained_on_when_the_iteration_has_ended():
    run, again = (Run("adaptive", samples=4 * BATCH, overhead=0) for _ in range(2))

    def steps(run):
        for batch in run.loader:
            run.accelerator.backward(run.model(batch[0]).mean())
            run.optimizer.step()
            yield batch

    for i, _ in enumerate(steps(run), 1):
        if i == 3:
            again.loader.load_state_dict(run.loader.state_dict())
            break
    assert len(list(steps(again))) == 1 and len(list(steps(again))) == 4
    assert again.loader.training_run.controller.progress_tracker.epoch == 2


def test_a_look_after_a_resume_leaves_the_rest_of_the_epoch():
    run, again = (Run("adaptive", **growing(1)) for _ in range(2))
    for i, batch in enumerate(run.loader, 1):
        run.accelerator.backward(run.model(batch[0]).mean())
        run.optimizer.step()
        if i == 5:
            again.loader.load_state_dict(run.loader.state_dict())
            break
    next(iter(again.loader))
    assert sum(len(batch[2]) for batch in again.loader) == UNEVEN - 5 * BATCH


def test_a_budget_of_progress_by_the_loaders_own_epochs():
    torch.manual_seed(1)
    run = Run("adaptive", **growing(1))
    run.train(epochs=run.loader.epochs(EPOCHS))
    assert run.place == run.total
    assert run.loader.progress == pytest.approx(1)
    assert max(run.seen["sizes"]) >= 32


def test_a_budget_of_progress_with_accumulation_ends_with_a_whole_step():
    torch.manual_seed(1)
    run = Run("adaptive", parts=2, **growing(1, 2))
    run.train(epochs=run.loader.epochs(EPOCHS))
    assert run.place == run.total
    assert run.seen["steps"][-1]
    assert max(run.seen["sizes"]) >= 32


@pytest.mark.parametrize("overflow", [None, 7, 60])
def test_a_loss_scale_and_a_step_that_is_left_out(overflow):
    """As with float16, whose scaler there is for a CPU too. Where a step is left out the schedule is not stepped."""
    stock, off = (trained(way, scaled=True, overflow=overflow, **extra) for way, extra in
                  (("stock", {}), ("adaptive", {"overhead": 0})))  # fmt: skip
    assert torch.equal(off["last"], stock["last"])
    assert off["lrs"] == stock["lrs"]
    assert stock["place"] == stock["total"] - (overflow is not None)
    grown = trained("adaptive", scaled=True, overflow=overflow, **growing(1))
    assert max(grown["sizes"]) >= 32
    assert grown["total"] - grown["place"] == (1 if overflow == 7 else 0), "once it has grown it goes to its place"
    measured = [record for record in grown["history"] if record["event"] == "measurement"]
    assert len(measured) > 3 and all(record["grad_sq"] is not None for record in measured)


def test_a_scheduler_stepped_once_an_epoch():
    def train(way, **arguments):
        torch.manual_seed(1)
        run = Run(way, schedule=lambda optimizer, total: StepLR(optimizer, 1, 0.5), **arguments)
        rates = []
        for _ in range(EPOCHS):
            for x, y, _ in run.loader:
                run.accelerator.backward(torch.nn.functional.mse_loss(run.model(x), y))
                run.optimizer.step()
                run.optimizer.zero_grad()
            run.scheduler.step()
            rates.append(run.scheduler.get_last_lr())
        return rates, run.loader.batch_size

    assert train("stock")[0] == train("adaptive", **growing(1))[0]
    assert train("adaptive", **growing(1))[1] > BATCH


def trained_batches(run):
    """Train on an epoch, and tell after each batch if it has made a step."""
    for x, y, _ in run.loader:
        with run.accelerator.accumulate(run.model):
            run.accelerator.backward(torch.nn.functional.mse_loss(run.model(x), y))
            run.optimizer.step()
            run.optimizer.zero_grad()
            yield run.accelerator.sync_gradients


@pytest.mark.parametrize("schedule", [ExponentialLR, hugging_face], ids=["of no length", "of the run's"])
def test_a_scheduler_of_no_length_that_is_not_prepared_counts_the_steps_of_what_epochs_leave(schedule):
    """26 batches are 9 steps of three, of which it had counted 8 and two thirds."""

    def train(way, **arguments):
        torch.manual_seed(1)
        make = (lambda o, total: ExponentialLR(o, 0.97)) if schedule is ExponentialLR else schedule
        run, places = Run(way, parts=3, schedule=make, **arguments), []
        for _ in range(EPOCHS):
            for is_a_step in trained_batches(run):
                if is_a_step:
                    run.scheduler.step()
            places.append(run.scheduler.scheduler.last_epoch)
        return places, run.loader.batch_size

    by_itself = {"configuration": {"step_scheduler_with_optimizer": False}}
    (stock, _), (ours, size) = train("stock", **by_itself), train("adaptive", **by_itself, **growing(1, 3))
    assert ours == stock == [9, 18, 27, 36] and size > BATCH


@pytest.mark.parametrize("parts", [1, 2])
def test_a_prepared_scheduler_that_the_loop_steps_at_every_third_step_only(parts):
    """Each call had made all the steps that were due, so that the schedule ended three times as far."""

    def train(way, **arguments):
        torch.manual_seed(1)
        schedule = lambda optimizer, total: StepLR(optimizer, 5, 0.5)  # noqa: E731
        run = Run(way, parts=parts, samples=240, schedule=schedule, **arguments)
        places, steps = [], 0
        for _ in range(EPOCHS):
            for is_a_step in trained_batches(run):
                steps += is_a_step
                if is_a_step and steps % 3 == 0:
                    run.scheduler.step()
            places.append(run.place)
        return places, run.loader.batch_size

    (stock, _), (ours, size) = train("stock"), train("adaptive", **growing(1, parts))
    assert size >= 4 * BATCH
    # Between two calls it stays where it is, and three larger steps are up to eight times as many of stock's calls.
    assert all(s - 8 <= o <= s for s, o in zip(stock, ours, strict=True))
    assert ours[-1] >= 0.6 * stock[-1]


def test_a_scheduler_that_is_not_prepared():
    forget_accelerate()
    accelerator, model = Accelerator(cpu=True), network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    stock = DataLoader(Numbered(UNEVEN), BATCH, shuffle=True)
    scheduler = hugging_face(optimizer, EPOCHS * len(stock))
    model, optimizer, stock = accelerator.prepare(model, optimizer, stock)
    loader = adaptive(
        accelerator, stock, model=model, optimizer=optimizer, scheduler=scheduler, epochs=EPOCHS, **growing(1)
    )
    for _ in range(EPOCHS):
        for x, y, _ in loader:
            accelerator.backward(torch.nn.functional.mse_loss(model(x), y))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert loader.batch_size > BATCH
    assert scheduler.last_epoch == EPOCHS * 26


def test_evaluating_within_an_epoch_and_breaking_off_leave_accelerates_state_right():
    run = Run("adaptive", **growing(1))
    state, other = run.accelerator.gradient_state, run.accelerator.prepare(DataLoader(Numbered(20), 5))
    for i, (x, _, _) in enumerate(run.loader):
        assert state.active_dataloader is run.loader
        for x, _, index in other:
            assert state.active_dataloader is other
            run.accelerator.gather_for_metrics((run.model(x), index))
        assert not state.end_of_dataloader
        if i == 3:
            break
    del i, x
    assert state.active_dataloader is None
    assert run.loader.end_of_dataloader is False
    with torch.no_grad():
        assert sum(len(index) for *_, index in run.loader) == UNEVEN


def looks_inside(number, run, kept):
    if number < 20:  # at the last batch the stock loader itself forgets that it is the last
        next(iter(run.loader))


def keeps_a_look(number, run, kept):
    if number == 3:
        kept[:] = [iter(run.loader)]
        next(kept[0])


def drops_what_was_kept(number, run, kept):
    if number == 0:
        kept.append(iter(run.loader))
        next(kept[-1])
    if number == 5:
        kept.clear()


@pytest.mark.parametrize("does", [looks_inside, keeps_a_look, drops_what_was_kept])
def test_another_iteration_that_ends_inside_of_the_loop_leaves_accelerate_what_it_knows_of_it(does):
    """`accumulate()` had made no step at the last batch, because accelerate knew of no iteration any more."""
    runs = []
    for way, said in (("stock", {}), ("adaptive", {"overhead": 0})):
        torch.manual_seed(1)
        run, kept = Run(way, parts=2, **said), []
        for _ in range(2):
            for number, (x, y, _) in enumerate(run.loader):
                does(number, run, kept)
                with run.accelerator.accumulate(run.model):
                    run.accelerator.backward(torch.nn.functional.mse_loss(run.model(x), y))
                    run.optimizer.step()
                    run.optimizer.zero_grad()
                run.seen["steps"].append(run.accelerator.sync_gradients)
                run.seen["ends"].append(run.accelerator.gradient_state.end_of_dataloader)
        runs.append(run)
    stock, ours = runs
    assert sum(ours.seen["ends"]) == 2
    assert ours.seen["ends"] == stock.seen["ends"] and ours.seen["steps"] == stock.seen["steps"]
    assert torch.equal(ours.flat(), stock.flat())


@pytest.mark.parametrize("keeps", [False, True], ids=["dropped", "kept for its history"])
def test_after_free_memory_nothing_keeps_the_model_and_the_next_training_alone_is_saved(tmp_path, keeps):
    """The loader that was registered had kept its model, and a script that trains once could not load its state."""
    run = Run("adaptive", epochs=1, **growing(1)).train()
    accelerator, model, kept = run.accelerator, weakref.ref(run.model), run.loader if keeps else None
    accelerator.free_memory()
    del run
    gc.collect()
    assert keeps or (model() is None and not accelerator._custom_objects)
    inner = network()
    again, optimizer = accelerator.prepare(inner, torch.optim.SGD(inner.parameters(), 0.1))
    stock = DataLoader(Numbered(UNEVEN), BATCH, shuffle=True)
    loader = adaptive(accelerator, stock, model=again, optimizer=optimizer, epochs=1)
    assert kept is None or len(kept.history) > 0
    accelerator.save_state(str(tmp_path))
    accelerator.load_state(str(tmp_path))
    assert len(list(tmp_path.glob("custom_checkpoint_*"))) == 1 and loader.epoch == 0


def test_split_batches_of_a_batch_sampler_that_is_not_prepared():
    """Their size had been read as 0."""
    accelerator, model, optimizer, stock = parts_of(dataloader_config=DataLoaderConfiguration(split_batches=True))
    model, optimizer = accelerator.prepare(model, optimizer)
    own = DataLoader(stock.dataset, batch_sampler=BatchSampler(SequentialSampler(stock.dataset), BATCH, False))
    assert adaptive(accelerator, own, model=model, optimizer=optimizer, epochs=1).batch_size == BATCH


def test_prepare_hands_it_back_and_the_stock_loader_is_forgotten():
    run = Run("adaptive", **growing(1))
    assert run.accelerator.prepare(run.loader) is run.loader
    assert isinstance(run.loader, AcceleratedLoader)
    assert run.accelerator._dataloaders == [run.loader]
    assert run.loader.total_batch_size == BATCH


def test_samplers_and_datasets_are_told_the_epoch():
    class Told(SequentialSampler):
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    sampler = Told(Numbered(UNEVEN))
    run = Run("adaptive", loader={"sampler": sampler, "shuffle": None}, epochs=2, **growing(1))
    run.train()
    assert sampler.epochs == [0, 1]


def test_a_stream():
    class Stream(IterableDataset):
        def __len__(self):
            return 60

        def __iter__(self):
            return iter([Numbered(60)[i] for i in range(60)])

    forget_accelerate()
    accelerator, model = Accelerator(cpu=True), network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model, optimizer, stock = accelerator.prepare(model, optimizer, DataLoader(Stream(), BATCH))
    loader = adaptive(accelerator, stock, model=model, optimizer=optimizer, epochs=2, **growing(1))
    for _ in range(2):
        ends, indices = [], []
        for x, y, i in loader:
            accelerator.backward(torch.nn.functional.mse_loss(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            ends.append(loader.end_of_dataloader)
            indices += i.tolist()
        assert indices == list(range(60))
        assert ends == [False] * (len(ends) - 1) + [True]


def parts_of(**configuration):
    forget_accelerate()
    accelerator, model = Accelerator(cpu=True, **configuration), network()
    return accelerator, model, torch.optim.AdamW(model.parameters(), 1e-3), DataLoader(Numbered(UNEVEN), BATCH)


def test_what_cannot_work_raises_with_the_line_to_write():
    accelerator, model, optimizer, stock = parts_of()
    with pytest.raises(TypeError, match=r"has to be prepared: write model, optimizer = accelerator\.prepare"):
        adaptive(accelerator, stock, model=model, optimizer=optimizer)
    prepared_model, prepared = accelerator.prepare(model, optimizer)
    with pytest.raises(TypeError, match="model= of type Sequential: it has to be prepared: write model, optimizer ="):
        adaptive(accelerator, stock, model=network(), optimizer=prepared)
    with pytest.raises(TypeError, match=r"must be an accelerate\.Accelerator"):
        adaptive(stock, stock, model=prepared_model, optimizer=prepared)
    with pytest.raises(TypeError, match=r"must be a torch\.utils\.data\.DataLoader"):
        adaptive(accelerator, [1, 2], model=prepared_model, optimizer=prepared)
    with pytest.raises(ValueError, match=r"has a batch_sampler= of its own|cut by a"):
        own = DataLoader(stock.dataset, batch_sampler=Pairs(SequentialSampler(stock.dataset), 4, False))
        adaptive(accelerator, accelerator.prepare(own), model=prepared_model, optimizer=prepared)
    loader = adaptive(accelerator, stock, model=prepared_model, optimizer=prepared, epochs=1)
    with pytest.raises(TypeError, match="adaptive already"):
        adaptive(accelerator, loader, model=prepared_model, optimizer=prepared)
    skipping = skip_first_batches(loader, 2)
    with pytest.raises(RuntimeError, match="without skip_first_batches"):
        next(iter(skipping))


class Pairs(BatchSampler):
    def __iter__(self):
        return iter([*super().__iter__()])


def test_prepare_refuses_the_plain_adaptive_loader_and_names_the_adapter():
    accelerator, model, optimizer, stock = parts_of()
    plain = AdaptiveDataLoader.from_loader(stock, model=model, optimizer=optimizer, epochs=2)
    with pytest.raises(TypeError, match=r"loader = adaptbs\.accelerate\.adaptive\(accelerator, loader, model=model"):
        accelerator.prepare(model, optimizer, plain)


def test_the_plain_loader_of_prepared_parts_says_what_to_write():
    accelerator, model, optimizer, stock = parts_of()
    model, optimizer, stock = accelerator.prepare(model, optimizer, stock)
    with pytest.raises(TypeError, match=r"prepared by accelerate.*adaptbs\.accelerate\.adaptive\(accelerator, loader"):
        AdaptiveDataLoader.from_loader(stock, model=model, optimizer=optimizer.optimizer)
    with pytest.raises(TypeError, match=r"AcceleratedOptimizer: .* give the one that it wraps"):
        AdaptiveDataLoader(stock.dataset, BATCH, model=model, optimizer=optimizer, epochs=1)


def test_a_kind_of_training_that_is_not_supported(monkeypatch):
    accelerator, model, optimizer, stock = parts_of()
    model, optimizer = accelerator.prepare(model, optimizer)
    monkeypatch.setattr(type(accelerator), "distributed_type", accelerate.DistributedType.FSDP)
    with pytest.raises(ValueError, match="training by FSDP is not supported"):
        adaptive(accelerator, stock, model=model, optimizer=optimizer)


def test_batches_that_are_drawn_ahead_of_a_step_by_count_hold_the_batch(caplog):
    """As in accelerate's own example of accumulation for language models, which had ended in StopIteration."""
    runs = []
    for way in ("stock", "adaptive"):
        run = Run(way, parts=2, **(growing(1, 2) if way == "adaptive" else {}))
        torch.manual_seed(0)
        for _ in range(EPOCHS):
            batches, left = iter(run.loader), len(run.loader)
            while left:
                drawn = [next(batches) for _ in range(min(2, left))]
                left -= len(drawn)
                for batch in drawn:
                    x, y, _ = batch
                    run.accelerator.backward(torch.nn.functional.mse_loss(run.model(x), y))
                run.optimizer.step()
                run.optimizer.zero_grad()
        runs.append(run)
    assert all(map(torch.equal, runs[0].model.parameters(), runs[1].model.parameters()))
    assert runs[1].loader.batch_size == BATCH and caplog.text.count("drawn by next()") == 1 == len(caplog.records)


def by_a_count(run):
    """Two batches a step, as scripts without `accumulate()` count them: the last batch of an epoch makes one, too."""
    for _ in range(EPOCHS):
        for number, (x, y, _) in enumerate(run.loader, 1):
            steps = number % 2 == 0 or number == len(run.loader)
            with nullcontext() if steps else run.accelerator.no_sync(run.model):
                run.accelerator.backward(torch.nn.functional.mse_loss(run.model(x), y) / 2)
            if steps:
                run.optimizer.step()
                run.scheduler.step()
                run.optimizer.zero_grad()


def test_a_loop_that_accumulates_by_itself_says_so(caplog):
    total = EPOCHS * 13  # steps
    schedule = lambda optimizer, _: hugging_face(optimizer, total)  # noqa: E731
    runs = []
    for way, said in (("stock", {}), ("adaptive", {"overhead": 0}), ("adaptive", growing(1, 2))):
        torch.manual_seed(1)
        accumulates = {"accumulation_steps": 2} if said else {}
        runs.append(Run(way, schedule=schedule, **accumulates, **said))
        by_a_count(runs[-1])
    stock, off, grown = runs
    assert torch.equal(off.flat(), stock.flat())
    assert grown.loader.batch_size >= 4 * BATCH and grown.place == stock.place == total
    assert not caplog.records


def test_two_numbers_of_accumulated_batches_are_refused():
    with pytest.raises(ValueError, match=r"accumulation_steps=3: accelerator\.accumulate\(\) makes a step of 2"):
        Run("adaptive", parts=2, accumulation_steps=3)


def test_nothing_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        trained("adaptive", parts=2, **growing(1, 2))
    assert not [record for record in caplog.records if record.name.startswith("adaptbs")]


class Odd(torch.nn.Module):
    """A parameter beside its layers, with BatchNorm: measured by halves, for which a batch would have to be cut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.norm = torch.nn.Parameter(torch.randn(8, 1)), torch.nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(x) @ self.weight


class Novel(torch.optim.Optimizer):
    """An optimizer of the user's own, of whose settings nothing is known."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 0.01, "novelty": 0.5})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p -= self.param_groups[0]["lr"] * p.grad.sign()


def with_pairs(items):
    """As many pairs as there happen to be: nothing says whose they are."""
    x, y, _ = torch.utils.data.default_collate(items)
    return x, y, torch.zeros(len(items) + 3, 2)


def test_a_loop_of_which_nothing_is_known_is_told_once_what_to_give(caplog):
    """No length, no measurable model, no batch that can be cut, an unknown optimizer: the stock loop to the bit."""

    def loss_of(model, batch):
        x, y, pairs = batch
        return torch.nn.functional.mse_loss(model(x), y) + 0 * pairs.sum()

    ends = []
    for ours in (False, True):
        forget_accelerate()
        accelerator, inner = Accelerator(cpu=True), Odd()
        optimizer = Novel(inner.parameters())
        stock = DataLoader(Numbered(203), BATCH, shuffle=True, collate_fn=with_pairs)
        model, optimizer, scheduler, loader = accelerator.prepare(inner, optimizer, StepLR(optimizer, 7), stock)
        if ours:
            loader = adaptive(
                accelerator, loader, model=model, optimizer=optimizer, scheduler=scheduler, batch_loss=loss_of
            )
        torch.manual_seed(1)
        for _ in range(2):
            for batch in loader:
                accelerator.backward(loss_of(model, batch))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        ends.append(torch.cat([value.flatten().float() for value in inner.state_dict().values()]))
    assert torch.equal(*ends)
    (warned,) = (r.getMessage() for r in caplog.records if r.name.startswith("adaptbs") and r.levelno > logging.INFO)
    assert warned.count("\n- ") == 3
    assert all(said in warned for said in ("Give epochs=", "Give split=", "cannot be measured", "transfer=('lr',)"))
