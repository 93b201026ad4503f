"""Loops as people write them, whose steps are measured: each measurement is right, or none is made, with the reason.

The truth is found the slow way: one backward pass an example, with the model as it is.
"""

from __future__ import annotations

import copy
import gc
import io
import logging
import math
import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader

N, SIZE = 48, 8
made = torch.Generator().manual_seed(1)
X, Y = torch.randn(N, 8, generator=made), torch.randint(0, 3, (N,), generator=made)
DATA = TensorDataset(X, Y)
Losses = list[Callable[[nn.Module], Tensor]]


class Bench:
    """Runs a loop with every step measured, or with none, and compares what was measured with the truth.

    Args:
        measures: False for the same run without measurements.
    """

    def __init__(self, *, measures: bool) -> None:
        self.measures = measures
        self.truths: list[tuple[float, float, int]] = []  # of each step: small, large, examples
        self.found: list[tuple[int, float, float, int]] = []  # number of steps so far, and the same
        self.caveats: set[str | None] = set()

    def loader(self, model: nn.Module, optimizer, data=DATA, size: int = SIZE, **arguments) -> AdaptiveDataLoader:
        target = size * arguments.get("accumulation_steps", 1)
        arguments |= {"overhead": 0.5, "target": lambda *_: target} if self.measures else {"overhead": 0}
        loader = AdaptiveDataLoader(data, size, model=model, optimizer=optimizer, epochs=1, **arguments)
        self.run = loader._session.run
        if self.measures:
            self.run.controller.measure_next_step = lambda: True
            self.run.controller.measured = self._measured
        return loader

    def _measured(self, measurement) -> None:
        if measurement is not None:
            norms = measurement.norms
            self.found.append((len(self.truths), float(norms.small), float(norms.large), norms.large_size))
            self.caveats.add(measurement.read_caveat())

    def truth(self, model: nn.Module, losses: Losses) -> None:
        """Each example's loss, as it counts in the step's gradient."""
        if not self.measures:
            return
        other = copy.deepcopy(model)
        parameters = [p for p in other.parameters() if p.requires_grad]
        small, total = 0.0, torch.zeros(1)
        for loss in losses:
            other.zero_grad()
            loss(other).backward()
            term = torch.cat([p.grad.flatten() for p in parameters])
            small, total = small + term.square().sum().item(), total + term
        self.truths.append((len(losses) * small, total.square().sum().item(), len(losses)))

    def check(self) -> int:
        """Compare; the number of measurements."""
        for step, *found in self.found:
            assert found == pytest.approx(self.truths[step - 1], rel=1e-4), f"step {step}"
        return len(self.found)


def mlp() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def mean(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def each(x: Tensor, y: Tensor, share: float | None = None, loss=mean) -> Losses:
    """The losses of single examples, each with its share in the whole loss."""
    share = 1 / len(x) if share is None else share
    return [lambda m, i=i: share * loss(m, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]


def compared(loop: Callable[[Bench], nn.Module]) -> Bench:
    """The bench of a loop that was run with and without measurements, which made no difference to what it trained."""
    weights = []
    for measures in (False, True):
        bench = Bench(measures=measures)
        torch.manual_seed(0)
        model = loop(bench)
        weights.append([*model.state_dict().values(), torch.rand(1)])
    assert all(map(torch.equal, *weights)), "measuring changed what was trained, or the random numbers"
    assert not any(m._forward_hooks for m in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())
    return bench


def plain(make: Callable[[], nn.Module], loss=mean, data=DATA, **arguments) -> Callable[[Bench], nn.Module]:
    def loop(bench: Bench) -> nn.Module:
        model = make()
        optimizer = SGD(model.parameters(), 0.1)
        for x, y in bench.loader(model, optimizer, data, **arguments):
            optimizer.zero_grad()
            loss(model, x, y).backward()
            bench.truth(model, each(x, y, loss=loss))
            optimizer.step()
        return model

    return loop


# ------------------------------------------------------------------------------------------- where gradients are zeroed


@pytest.mark.parametrize("none", [True, False])
@pytest.mark.parametrize("where", ["before", "between", "after"])
def test_gradients_zeroed_anywhere(where, none):
    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer = SGD(model.parameters(), 0.1)
        for x, y in bench.loader(model, optimizer):
            if where == "before":
                optimizer.zero_grad(set_to_none=none)
            loss = mean(model, x, y)
            if where == "between":
                optimizer.zero_grad(set_to_none=none)
            loss.backward()
            bench.truth(model, each(x, y))
            optimizer.step()
            if where == "after":
                optimizer.zero_grad(set_to_none=none)
        return model

    assert compared(loop).check() >= 3


def double(none: bool, by_data: bool = False, factor: float = 0) -> Callable[[Bench], nn.Module]:
    """Two backward passes a step, as sharpness-aware minimisation makes; the first gradient is left behind, or not."""

    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer = SGD(model.parameters(), 0.1)
        for x, y in bench.loader(model, optimizer):
            optimizer.zero_grad()
            mean(model, x, y).backward()
            for p in model.parameters():
                if none:
                    p.grad = None
                else:
                    (p.grad.data if by_data else p.grad).mul_(factor)
            mean(model, x, y).backward()
            bench.truth(model, each(x, y))
            optimizer.step()
        return model

    return loop


@pytest.mark.parametrize("none", [True, False])
def test_a_pass_whose_gradients_were_zeroed_does_not_count(none):
    assert compared(double(none)).check() == 6


def test_gradients_changed_between_passes_are_not_measured(caplog):
    with caplog.at_level(logging.INFO, "adaptbs"):
        assert compared(double(False, factor=0.5)).found == []
    assert "the gradients were changed between two backward passes" in caplog.text
    assert [r.levelname for r in caplog.records if "a step was not measured" in r.message].count("WARNING") == 1


@pytest.mark.parametrize("factor", [0, 0.5])
def test_nor_are_those_that_were_changed_where_no_version_tells(factor):
    found = compared(double(False, by_data=True, factor=factor)).found
    assert all(math.isnan(small) for _, small, _, _ in found)


def test_two_passes_over_the_same_batch_are_not_taken_for_two_batches(caplog):
    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer = SGD(model.parameters(), 0.1)
        for x, y in bench.loader(model, optimizer):
            optimizer.zero_grad()
            out = model(x)
            F.cross_entropy(out, y).backward(retain_graph=True)
            out.square().mean().backward()
            optimizer.step()
        return model

    assert compared(loop).found == []
    assert "2 backward passes are made for 1 of its batches" in caplog.text


def test_nor_where_the_loop_looks_one_batch_ahead():
    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer = SGD(model.parameters(), 0.1)
        batches = iter(bench.loader(model, optimizer))
        following = next(batches)
        while following is not None:
            (x, y), following = following, next(batches, None)
            optimizer.zero_grad()
            for _ in range(2):
                mean(model, x, y).backward()
            optimizer.step()
        return model

    assert compared(loop).found == []


@pytest.mark.parametrize("given", [True, False])
def test_accumulated_batches(given):
    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer, losses = SGD(model.parameters(), 0.1), []
        for i, (x, y) in enumerate(bench.loader(model, optimizer, accumulation_steps=3 if given else 1)):
            losses += each(x, y, 1 / (3 * len(x)))
            (mean(model, x, y) / 3).backward()
            if (i + 1) % 3 == 0:
                bench.truth(model, losses)
                losses = []
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                optimizer.step()
                optimizer.zero_grad()
        return model

    assert compared(loop).check() == 2


def test_steps_that_a_grad_scaler_skips():
    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer = SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
        for i, (x, y) in enumerate(bench.loader(model, optimizer)):
            scale = scaler.get_scale()
            optimizer.zero_grad(set_to_none=False)
            loss = mean(model, x, y)
            scaler.scale(loss * math.inf if i == 2 else loss).backward()
            bench.truth(model, each(x, y, scale / len(x)))
            scaler.step(optimizer)
            scaler.update()
        return model

    bench = compared(loop)
    bench.found = [one for one in bench.found if math.isfinite(one[1])]
    assert bench.check() >= 2


# ------------------------------------------------------------------------------------- models that change, and copies


def test_what_is_unfrozen_after_its_batch_was_delivered_is_not_left_out():
    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer = SGD(model.parameters(), 0.1)
        model[0].requires_grad_(False)
        for i, (x, y) in enumerate(bench.loader(model, optimizer)):
            if i == 2:
                model[0].requires_grad_(True)
            optimizer.zero_grad()
            mean(model, x, y).backward()
            bench.truth(model, each(x, y))
            optimizer.step()
        return model

    assert compared(loop).check() == 5


@pytest.mark.parametrize("change", ["added", "replaced"])
def test_layers_that_are_added_or_replaced_in_mid_run(change):
    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer = SGD(model.parameters(), 0.1)
        for i, (x, y) in enumerate(bench.loader(model, optimizer)):
            optimizer.zero_grad()
            mean(model, x, y).backward()
            bench.truth(model, each(x, y))
            optimizer.step()
            if i == 2 and change == "added":
                model.append(nn.Linear(3, 3))
                optimizer.add_param_group({"params": model[3].parameters()})
            elif i == 2:
                model[2] = nn.Linear(6, 3)
                optimizer.param_groups[0]["params"] = list(model.parameters())
        return model

    assert compared(loop).check() == 6


def batch_norm(affine: bool = True) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6, affine=affine), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_that_trains_from_the_fourth_step_on(affine, caplog):
    def loop(bench: Bench) -> nn.Module:
        model = batch_norm(affine).eval()
        optimizer = SGD(model.parameters(), 0.1)
        for i, (x, y) in enumerate(bench.loader(model, optimizer)):
            model.train(i > 2)
            optimizer.zero_grad()
            mean(model, x, y).backward()
            bench.truth(model, each(x, y) if i <= 2 else [])
            optimizer.step()
            model.eval()
        return model

    assert compared(loop).check() == 3
    assert "a BatchNorm1d in training mode ties the examples of a batch together" in caplog.text


def test_a_hook_of_the_users_that_comes_later_is_noticed(caplog):
    def loop(bench: Bench) -> nn.Module:
        model, handle = mlp(), None
        optimizer = SGD(model.parameters(), 0.1)
        for i, (x, y) in enumerate(bench.loader(model, optimizer)):
            optimizer.zero_grad()
            if i == 3:
                handle = model[2].weight.register_hook(lambda g: 0.1 * g)
            mean(model, x, y).backward()
            bench.truth(model, each(x, y))
            optimizer.step()
        handle.remove()
        return model

    with caplog.at_level(logging.INFO, "adaptbs"):
        assert compared(loop).check() == 3
    assert "a parameter was given a hook after the step's batch was delivered" in caplog.text
    assert "the gradient of 2.weight is not the sum" in caplog.text


@pytest.mark.parametrize("how", ["copied", "saved"])
def test_a_model_may_be_copied_and_saved_while_it_is_watched(how):
    others = []

    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer = SGD(model.parameters(), 0.1)
        for x, y in bench.loader(model, optimizer):
            if how == "copied":
                other = copy.deepcopy(copy.deepcopy(model))
            else:
                file = io.BytesIO()
                torch.save(model, file)
                assert b"adaptbs" not in file.getvalue()
                file.seek(0)
                other = torch.load(file, weights_only=False)
            others.append(other)
            optimizer.zero_grad()
            (mean(model, x, y) + 0 * mean(other, x, y)).backward()
            assert torch.equal(model(x), other(x))
            bench.truth(model, each(x, y))
            optimizer.step()
        return model

    assert compared(loop).check() == 6
    if how == "copied":
        assert not any(m._forward_hooks or m._forward_hooks_with_kwargs for one in others for m in one.modules())


def test_evaluating_between_delivery_and_step():
    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer = SGD(model.parameters(), 0.1)
        for x, y in bench.loader(model, optimizer):
            model.eval()
            with torch.inference_mode():
                model(x[:3])
            model(x).sum()  # without no_grad
            model.train()
            optimizer.zero_grad()
            loss = mean(model, x, y)
            with torch.no_grad():
                model(X)
            loss.backward()
            bench.truth(model, each(x, y))
            optimizer.step()
        return model

    assert compared(loop).check() == 6


class Interrupts(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, g):
        raise KeyboardInterrupt


def test_a_step_that_was_interrupted_and_made_again():
    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer = SGD(model.parameters(), 0.1)
        for x, y in bench.loader(model, optimizer):
            optimizer.zero_grad()
            with pytest.raises(KeyboardInterrupt):
                F.cross_entropy(model[2](Interrupts.apply(model[:2](x))), y).backward()
            optimizer.zero_grad()
            mean(model, x, y).backward()
            bench.truth(model, each(x, y))
            optimizer.step()
        return model

    assert compared(loop).check() == 6


def test_another_thread_may_use_the_model_meanwhile():
    def loop(bench: Bench) -> nn.Module:
        model, over = mlp(), threading.Event()

        def watch() -> None:
            while not over.is_set():
                with torch.no_grad():
                    model(X[:2])

        other = threading.Thread(target=watch)
        other.start()
        try:
            optimizer = SGD(model.parameters(), 0.1)
            for x, y in bench.loader(model, optimizer):
                optimizer.zero_grad()
                mean(model, x, y).backward()
                bench.truth(model, each(x, y))
                optimizer.step()
        finally:
            over.set()
            other.join()
        return model

    assert compared(loop).check() == 6


def test_a_loop_that_keeps_nothing_but_the_iteration():
    def loop(bench: Bench) -> nn.Module:
        model = mlp()
        optimizer = SGD(model.parameters(), 0.1)
        batches = iter(bench.loader(model, optimizer))
        gc.collect()
        for x, y in batches:
            optimizer.zero_grad()
            mean(model, x, y).backward()
            bench.truth(model, each(x, y))
            optimizer.step()
        return model

    assert compared(loop).check() == 6


def test_a_loss_that_is_kept_keeps_no_layers_inputs():
    model = mlp()
    optimizer, kept = SGD(model.parameters(), 0.1), []
    for x, y in Bench(measures=True).loader(model, optimizer):
        optimizer.zero_grad()
        hidden = model[:2](x)
        alive = len([None for o in gc.get_objects() if type(o) is Tensor and o.data_ptr() == hidden.data_ptr()])
        kept.append(F.cross_entropy(model[2](hidden), y))
        kept[-1].backward()
        optimizer.step()
        left = [o for o in gc.get_objects() if type(o) is Tensor and o.data_ptr() == hidden.data_ptr()]
        assert len(left) <= alive
        del left


# ------------------------------------------------------------------------------------------ which rows are an example's


class Positions(nn.Module):
    """A layer on sequences whose positions come first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding, self.inside, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inside(self.embedding(tokens.T).cumsum(0))).mean(0))


def tokens(lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 9, (SIZE, length), generator=generator) for length in lengths]


def test_as_many_positions_as_examples_are_known_by_earlier_steps():
    def loop(bench: Bench) -> nn.Module:
        model = Positions()
        optimizer, batches = SGD(model.parameters(), 0.1), tokens([5, SIZE, 6, SIZE, 2 * SIZE, 7])
        for (_, y), x in zip(bench.loader(model, optimizer), batches, strict=True):
            optimizer.zero_grad()
            mean(model, x, y).backward()
            bench.truth(model, each(x, y))
            optimizer.step()
        return model

    assert compared(loop).check() == 6


class Windows(nn.Module):
    """Windows of as many positions as there are examples, one after another, as in vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inside, self.head = nn.Linear(2, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(1, 2, 1)[:, :, None].expand(-1, -1, SIZE, -1).flatten(0, 1)  # (7 n, SIZE, 2)
        return self.head(torch.tanh(self.inside(windows)).unflatten(0, (len(x), -1)).mean((1, 2)))


def test_windows_are_not_taken_for_sequences_with_positions_first(caplog):
    assert compared(plain(Windows)).found == []
    assert "a multiple of the examples along its first dimension" in caplog.text


def test_a_layer_called_on_other_numbers_of_rows_is_refused_with_the_reason(caplog):
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return mean(model, x, y) + model(x.new_ones(5, 8)).square().mean()

    assert compared(plain(mlp, loss)).found == []
    assert "a layer is called on 5 and on 8 examples" in caplog.text


class ByHand(torch.autograd.Function):
    @staticmethod
    def forward(context, x, weight):
        context.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(context, g):
        x, weight = context.saved_tensors
        return g * weight, (g * x).sum(0)


class OwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return ByHand.apply(x, self.weight)


def test_a_layer_that_torch_cannot_differentiate_again_is_measured_by_halves_if_the_loss_is_known():
    bench = Bench(measures=True)
    sources = []
    model = nn.Sequential(OwnFunction(), mlp())
    optimizer = SGD(model.parameters(), 0.1)
    loader = bench.loader(model, optimizer, loss_func=F.cross_entropy)
    bench.run.controller.measured = lambda m: sources.append(m and m.source)
    for x, y in loader:
        optimizer.zero_grad()
        mean(model, x, y).backward()
        optimizer.step()
    assert sources[-1] == "halves"


# --------------------------------------------------------------------------------------------------------- checkpoints


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool | None, nested: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last, self._reentrant, self._nested = nn.Linear(8, 8), nn.Linear(8, 3), reentrant, nested
        self.one, self.two = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))

    def inside(self, x: Tensor) -> Tensor:
        return self._run(self.two, self.one(x)) if self._nested else self.two(self.one(x))

    def _run(self, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return checkpoint(part, x, use_reentrant=self._reentrant)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._run(self.inside, self.first(x)))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant, nested):
    assert compared(plain(lambda: Checkpointed(reentrant=reentrant, nested=nested))).check() == 6


def live(width: int) -> int:
    """The number of tensors of so many columns."""
    gc.collect()
    return sum(type(o) is Tensor and o.dim() == 2 and o.shape[1] == width for o in gc.get_objects())


TELLS = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")  # torch 2.6 does not say where it checkpoints
UNTOLD = pytest.mark.skipif(not TELLS, reason="this torch does not say whether it is in a checkpoint")


@pytest.mark.parametrize("reentrant", [True, pytest.param(False, marks=UNTOLD)])
def test_what_a_checkpoint_lets_go_of_is_not_kept(reentrant):
    inside = nn.Sequential(nn.Linear(8, 37), nn.Linear(37, 37), nn.LayerNorm(37), nn.Linear(37, 8))
    model = nn.Sequential(mlp(), nn.Linear(3, 8), inside)
    optimizer = SGD(model.parameters(), 0.1)
    for x, _ in Bench(measures=True).loader(model, optimizer):
        optimizer.zero_grad()
        before = live(37)
        loss = checkpoint(inside, model[1](model[0](x)), use_reentrant=reentrant).square().mean()
        assert live(37) == before
        loss.backward()
        optimizer.step()
        assert live(37) <= before + 2  # the gradients


class Siamese(Checkpointed):
    """Both of its checkpoints use the same layers, each twice, and end with what no layer of ours sees."""

    def inside(self, x: Tensor) -> Tensor:
        return torch.tanh(self.two(self.one(self.two(self.one(x)))))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self._run(self.inside, h) * self._run(self.inside, h.cos()))


def test_layers_that_several_checkpoints_share():
    assert compared(plain(lambda: Siamese(reentrant=False))).check() == 6


def test_two_losses_computed_before_either_goes_backward():
    def loop(bench: Bench) -> nn.Module:
        model = Checkpointed(reentrant=False)
        optimizer = SGD(model.parameters(), 0.1)
        for x, y in bench.loader(model, optimizer):
            optimizer.zero_grad()
            halves = zip(x.chunk(2), y.chunk(2), strict=True)
            for loss in [mean(model, *half) / 2 for half in halves]:
                loss.backward()
            bench.truth(model, each(x, y))
            optimizer.step()
        return model

    assert compared(loop).check() == 6


def test_saved_tensors_on_another_device():
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return mean(model, x, y)

    assert compared(plain(mlp, loss)).check() == 6
