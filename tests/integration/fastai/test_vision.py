"""`vision_learner` on small pictures, where torchvision can be imported (its wheels want CUDA's build of torch)."""

from __future__ import annotations

import pytest
import torch

try:
    from fastai.vision.all import (
        CategoryBlock,
        CutMix,
        DataBlock,
        ImageBlock,
        MixUp,
        RandomSplitter,
        accuracy,
        aug_transforms,
        load_learner,
        resnet18,
        set_seed,
        vision_learner,
    )  # fmt: skip
    from PIL import Image
except (ImportError, RuntimeError) as error:
    pytest.skip(f"torchvision does not import here: {error}", allow_module_level=True)

from fastai.callback.core import Callback

from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.run import training_run
from tests.simulated_device import OnDevice, SimulatedMemory

PICTURES = 96


def picture(i: int) -> Image.Image:
    """The upper or the lower half is the brighter one, in noise."""
    noise = torch.randint(0, 120, (32, 32, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
    noise[:16 if i % 2 else 32][-16:] += 120
    return Image.fromarray(noise.numpy())


def half(i: int) -> str:
    return "upper" if i % 2 else "lower"


def numbers(_) -> list[int]:
    return list(range(PICTURES))


def learner(num_workers: int = 0, cbs=(), augment: bool = True, **kwargs):
    set_seed(3)
    block = DataBlock(
        (ImageBlock, CategoryBlock), get_items=numbers, get_x=picture, get_y=half,
        splitter=RandomSplitter(0.25, seed=1), batch_tfms=aug_transforms(size=32) if augment else None,
    )  # fmt: skip
    dls = block.dataloaders(None, bs=8, num_workers=num_workers)
    options = {"pretrained": False, "metrics": accuracy, **kwargs}
    return vision_learner(dls, resnet18, cbs=list(cbs), **options)


class Sizes(Callback):
    """How many pictures each training batch held."""

    order = 70

    def before_fit(self):
        self.seen = []

    def after_batch(self):
        if self.training:
            self.seen.append(len(self.xb[0]))


def grown(**kwargs) -> AdaptiveBatchSize:
    """A batch that doubles at each decision, up to 32."""
    options = {"overhead": 0, "max_batch_size": 32, "decide_every": 0.2, **kwargs}
    return AdaptiveBatchSize(target=lambda noise_scale, batch_size, progress: 2 * batch_size, **options)


def weights(learn) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_that_grows_has_each_picture_once_an_epoch(num_workers):
    learn, sizes = learner(num_workers), Sizes()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 1e-3, cbs=[grown(), sizes])
    each = len(learn.dls.train_ds) // 8 * 8
    assert sum(sizes.seen) == 3 * each
    assert {8, 16, 32} <= set(sizes.seen)
    assert learn.dls.train.bs == 8


def test_without_an_argument_it_measures_and_trains():
    learn, callback = learner(), AdaptiveBatchSize()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(4, 3e-3, cbs=callback)
    made = [record for record in callback.history.records if record["event"] == "measurement"]
    assert made and all(record["grad_sq"] is not None for record in made)
    assert learn.recorder.losses[-1] < learn.recorder.losses[0]


def test_a_batch_that_stays_trains_as_stock_does_to_the_bit():
    ours, stock = learner(), learner()
    for learn, cbs in ((ours, [AdaptiveBatchSize(overhead=0, max_batch_size=8)]), (stock, [])):
        set_seed(5, reproducible=True)
        with learn.no_bar(), learn.no_logging():
            learn.fine_tune(1, 1e-3, cbs=cbs)
    assert torch.equal(weights(ours), weights(stock))


def test_fine_tuning_moves_only_the_head_while_the_body_is_frozen():
    learn = learner()
    learn.freeze()
    body = torch.cat([p.detach().flatten() for p in learn.model[0].parameters() if not p.requires_grad])
    callback = grown(overhead=0.2)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, slice(1e-4, 1e-2), cbs=callback)
    frozen = torch.cat([p.detach().flatten() for p in learn.model[0].parameters() if not p.requires_grad])
    assert torch.equal(frozen, body)
    assert callback.batch_size == 32 and callback.noise_scale is not None
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, 1e-3, freeze_epochs=1, cbs=grown())


@pytest.mark.parametrize("first", ["lr", "bs"])
def test_both_finders_in_either_order_leave_no_trace(first):
    learn = learner(cbs=[AdaptiveBatchSize()])
    before = weights(learn).clone()
    with learn.no_bar(), learn.no_logging():
        for finder in ("lr", "bs") if first == "lr" else ("bs", "lr"):
            if finder == "lr":
                learn.lr_find(num_it=8, show_plot=False)
            else:
                found = learn.bs_find(n_batch=2, show_plot=False)
    assert found.loader_batch_size == 8 and found.low >= 0
    assert torch.equal(weights(learn), before)


@pytest.mark.parametrize("mix", [MixUp, CutMix])
def test_mixed_pictures_are_measured_with_their_partners(mix):
    learn, callback = learner(cbs=[mix()]), grown(overhead=0.3)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 1e-3, cbs=callback)
    assert callback.noise_scale is not None and callback.batch_size == 32


@pytest.mark.parametrize("how", ["to_fp16", "to_bf16"])
def test_mixed_precision_is_switched_off_on_a_cpu_and_does_no_harm(how):
    learn, callback = getattr(learner(), how)(), grown(overhead=0.2)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 1e-3, cbs=callback)
    assert callback.batch_size == 32 and weights(learn).isfinite().all()


def test_predictions_and_test_time_augmentation_do_not_notice_a_grown_batch(tmp_path):
    learn = learner(path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 1e-3, cbs=grown())
        plain, targets = learn.get_preds()
        loss, share = learn.validate()
        set_seed(11)
        averaged, _ = learn.tta(n=2)
    assert plain.shape == averaged.shape == (len(learn.dls.valid_ds), 2)
    assert share == pytest.approx((plain.argmax(1) == targets).float().mean().item())
    assert learn.dls.train.bs == learn.dls.valid.bs == 8 and loss > 0
    learn.export("small.pkl")
    again = load_learner(tmp_path / "small.pkl")
    with again.no_bar(), learn.no_bar():
        torch.testing.assert_close(again.predict(picture(0))[2], learn.predict(picture(0))[2])


def test_running_out_of_memory_is_survived(monkeypatch):
    memory = SimulatedMemory(1_000_000)
    monkeypatch.setattr(training_run, "memory_of", lambda *_: memory)
    learn, sizes, callback = learner(), Sizes(), grown()
    OnDevice(learn.model, memory, per_sample=10_000, fixed=1_000)
    memory.capacity = 1_000 + 6 * 10_000  # another process has taken the rest
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 1e-3, cbs=[callback, sizes])
    assert sum(sizes.seen) == 2 * (len(learn.dls.train_ds) // 8 * 8)
    assert "out of memory" in {record["event"] for record in callback.history.records}
    assert sizes.seen[0] == 8 and max(sizes.seen[1:]) <= 6 and weights(learn).isfinite().all()
