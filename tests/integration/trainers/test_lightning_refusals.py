"""adaptbs.lightning: what the batch cannot grow in is refused before the first batch, with what to write."""

from __future__ import annotations

import pytest
import torch

lightning = pytest.importorskip("lightning", reason="needs lightning: `make trainers` runs it in .venv-trainers")

from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging  # noqa: E402
from lightning.pytorch.utilities import CombinedLoader  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, IterableDataset, StackDataset  # noqa: E402

from adaptbs import AdaptiveDataLoader  # noqa: E402
from adaptbs.lightning import AdaptiveBatchSize  # noqa: E402
from tests.integration.trainers.lightning_programs import BATCH, Module, fitted, growing  # noqa: E402
from tests.integration.training import Numbered  # noqa: E402


def loader(n: int = 64) -> DataLoader:
    return DataLoader(Numbered(n), BATCH, shuffle=True)


class Gan(Module):
    """Two optimizers, stepped in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(self.net[i].parameters(), 1e-3) for i in (0, 3)]


class FetchesByItself(Module):
    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return self.loss(batch)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Numbered(64))


class Sized(Stream):
    def __len__(self):
        return 64


class Normed(Module):
    def __init__(self) -> None:
        super().__init__(schedule=None)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))


def plain():
    return Module(schedule=None)


REFUSED = {
    "optimizers": (NotImplementedError, r"2 optimizers, as for a GAN.*leave AdaptiveBatchSize out", {"module": Gan}),
    "loaders by name": (
        NotImplementedError, r"2 train loaders.*DataLoader\(StackDataset\(", {"train": {"a": loader(), "b": loader()}}
    ),
    "combined loaders": (
        NotImplementedError, r"2 train loaders.*DataLoader\(StackDataset\(",
        {"train": CombinedLoader([loader(), loader()], "max_size")},
    ),
    "adaptive": (
        TypeError, r"give the Trainer the stock loader, as trainer\.fit\(model, DataLoader\(",
        {"train": lambda: AdaptiveDataLoader(Numbered(64), BATCH, model=(m := plain()),
                                             optimizer=torch.optim.SGD(m.parameters(), 0.1), epochs=1)},
    ),
    "no loader": (TypeError, r"a torch\.utils\.data\.DataLoader\(dataset", {"train": lambda: Lazy()}),
    "batch sampler": (
        ValueError, r"batch_sampler= of its own.*DataLoader\(dataset, batch_size=\.\.\., shuffle=True\)",
        {"train": lambda: DataLoader(Numbered(64), batch_sampler=[[i, i + 1] for i in range(0, 64, 2)])},
    ),
    "no batches": (ValueError, r"does not batch", {"train": lambda: DataLoader(Numbered(64), batch_size=None)}),
    "fetches by itself": (
        NotImplementedError, r"write training_step\(self, batch, batch_idx\)", {"module": FetchesByItself}
    ),
    "reloads": (NotImplementedError, r"reload_dataloaders_every_n_epochs=1: .*Write 0",
                {"reload_dataloaders_every_n_epochs": 1}),
    "averages weights": (NotImplementedError, r"swa_utils", {"callbacks": [StochasticWeightAveraging(1e-2)]}),
    "accumulation changes": (
        NotImplementedError, r"Trainer\(accumulate_grad_batches=\)",
        {"callbacks": [GradientAccumulationScheduler({1: 2})]},
    ),
    "stream without a length": (TypeError, r"Give it a __len__", {"train": lambda: DataLoader(Stream(), BATCH)}),
    "limited stream": (
        ValueError, r"limit_train_batches=3 of an IterableDataset",
        {"train": lambda: DataLoader(Sized(), BATCH), "limit_train_batches": 3},
    ),
    "batch norm": (ValueError, r"BatchNorm1d 'net\.1'.*batch_loss=\(model, batch\) -> loss", {"module": Normed}),
}  # fmt: skip


class Lazy:
    def __iter__(self):
        yield from loader()

    def __len__(self):
        return 8


@pytest.mark.parametrize(("error", "says", "how"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_grow_is_refused_with_the_line_to_write(error, says, how):
    train = how.get("train", loader)
    how = {"module": plain, "max_epochs": 1, **how, "train": train() if callable(train) else train}
    with pytest.raises(error, match=says):
        fitted(growing(), **how)


def test_the_line_for_two_datasets_works():
    class Two(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx) + self.loss(batch["b"])

    both = StackDataset(a=Numbered(203), b=Numbered(203))
    module = fitted(growing(), Two, train=DataLoader(both, BATCH, shuffle=True))
    assert max(module.saw.sizes) >= 4 * BATCH


def test_one_loader_by_name_is_a_loader():
    class Named(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["only"], batch_idx)

    module = fitted(growing(), Named, train={"only": loader(203)})
    assert max(module.saw.sizes) >= 4 * BATCH


def test_a_trainer_that_is_given_our_loader_without_the_callback_raises():
    module = plain()
    ours = AdaptiveDataLoader(
        Numbered(64), BATCH, model=module, optimizer=torch.optim.SGD(module.parameters(), 0.1), epochs=1
    )
    with pytest.raises(TypeError, match=r"from adaptbs\.lightning import AdaptiveBatchSize; Trainer\(callbacks="):
        fitted(None, lambda: module, train=ours, max_epochs=1)


def test_a_strategy_that_shares_the_model_out_is_refused(monkeypatch):
    class FSDPStrategy:
        pass

    from adaptbs.lightning import refusals

    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(type(trainer), "strategy", FSDPStrategy())
    with pytest.raises(NotImplementedError, match=r"FSDPStrategy.*Trainer\(strategy='ddp'\)"):
        refusals.check(trainer, [loader()])


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"budget": "progress"}, ValueError, r"budget='progress': a Trainer ends after max_epochs or max_steps"),
        ({"targt": "goodput"}, TypeError, r"unexpected keyword argument 'targt'"),
        ({"accumulation_steps": 0}, ValueError, r"accumulation_steps=0"),
        ({"overhead": 2}, ValueError, r"overhead=2"),
        ({"loss_func": nn.MSELoss(), "batch_loss": len}, ValueError, r"give either loss_func="),
        ({"batch_loss": 3}, TypeError, r"batch_loss=3"),
    ],
)
def test_arguments_that_cannot_be(arguments, error, says):
    with pytest.raises(error, match=says):
        AdaptiveBatchSize(**arguments)


def test_before_the_first_fit_there_is_nothing_to_tell():
    callback = AdaptiveBatchSize()
    assert callback.batch_size is None
    assert callback.noise_scale is None
    assert callback.state_dict() == {}
    assert "no run yet" in repr(callback)
