"""What is left of a fit, a mock fit or a validation that was broken off or came within another."""

from __future__ import annotations

import fastai.callback.schedule  # noqa: F401  (gives a Learner lr_find)
import pytest
from fastai.basics import Callback, CancelBatchException, Learner
from fastai.callback.training import GradientAccumulation

from adaptbs.fastai import AdaptiveBatchSize, ShowBatchSizeCallback

from .learners import doubling, make_learner, same, weights

GROWS = {"target": doubling, "max_batch_size": 80, "step_time": (1e-3, 1e-5), "overhead": 0.5}


class Breaks(Callback):
    """Raises an error at an event, once."""

    order = 80

    def __init__(self, event: str, error: BaseException) -> None:
        self.error: BaseException | None = error
        setattr(self, event, self.go)

    def go(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


class Validates(Callback):
    """Validates before the first epoch and after each, as to have a line to compare with."""

    order = 90

    def before_epoch(self) -> None:
        if self.epoch == 0 and not self.learn.lock.locked():
            self.learn.validate()

    def after_epoch(self) -> None:
        if not self.learn.lock.locked():
            self.learn.validate()


class SawAccumulation(Callback):
    order = 100

    def __init__(self) -> None:
        self.on: list[bool] = []

    def before_batch(self) -> None:
        if self.learn.training:
            self.on.append(self.learn.gradient_accumulation.run)


def test_a_validation_before_the_first_epoch_leaves_the_fit_adaptive() -> None:
    """The fit had ended with an error, or a second one had gone on with the first one's run."""
    learn, callback = make_learner(n=403), AdaptiveBatchSize(**GROWS)
    with learn.no_bar(), learn.no_logging():
        for _ in range(2):
            before = callback.training_run
            learn.fit(1, 1e-2, cbs=[callback, Validates()])
            assert callback.training_run is not before
            assert callback.batch_size is not None and callback.batch_size > learn.dls.bs


def test_gradient_accumulation_stays_off_after_a_validation_within_the_fit() -> None:
    learn, saw = make_learner(n=403), SawAccumulation()
    learn.add_cb(GradientAccumulation(40))
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-2, cbs=[AdaptiveBatchSize(**GROWS), Validates(), saw])
    assert saw.on and not any(saw.on), "fastai switches each callback on where a validation ends"
    assert learn.gradient_accumulation.run


def test_a_fit_after_an_interrupted_lr_find_is_adaptive() -> None:
    """It had a fixed batch, in silence: the mock fit had switched the callback off, and had no end that does it on."""
    learn, callback = make_learner(n=403), AdaptiveBatchSize(**GROWS)
    learn.add_cb(callback)
    with learn.no_bar(), learn.no_logging():
        learn.add_cb(Breaks("after_backward", KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            learn.lr_find(show_plot=False)
        learn.fit(1, 1e-2)
    assert callback.batch_size is not None and callback.batch_size > learn.dls.bs


def test_a_callback_that_the_user_switches_off_stays_off_for_a_fit() -> None:
    learn, callback = make_learner(n=403), AdaptiveBatchSize(**GROWS)
    learn.add_cb(callback)
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        callback.run = False
        learn.fit(1, 1e-2)
        assert callback.training_run is None
        learn.fit(1, 1e-2)
    assert callback.training_run is not None


def test_the_picture_is_drawn_in_a_fit_after_a_validation() -> None:
    """A validation had switched its callback off for good."""
    learn, shows = make_learner(n=403), ShowBatchSizeCallback()
    learn.add_cb(shows)
    learn.validate()
    assert shows.run


@pytest.mark.parametrize("stays", [False, True], ids=["of the fit", "of the Learner"])
def test_an_error_before_the_first_batch_leaves_nothing_in_later_fits(stays: bool) -> None:
    learn, stock, callback = make_learner(n=403), make_learner(n=403), AdaptiveBatchSize(overhead=0)
    learn.add_cbs([callback] if stays else [])
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(ValueError, match="wrong"):
            learn.fit(1, 1e-2, cbs=[Breaks("before_train", ValueError("wrong"))] + ([] if stays else [callback]))
        if not stays:
            assert "_do_one_batch" not in vars(learn) and learn.dl is learn.dls.train
        learn.fit(1, 1e-2)
        assert "_do_one_batch" not in vars(learn)
    with stock.no_bar(), stock.no_logging():
        with pytest.raises(ValueError, match="wrong"):
            stock.fit(1, 1e-2, cbs=Breaks("before_train", ValueError("wrong")))
        stock.fit(1, 1e-2)
    assert same(weights(learn), weights(stock))


def test_gradient_accumulation_is_back_after_a_fit_that_could_not_begin() -> None:
    learn = make_learner(n=403)
    learn.add_cbs([GradientAccumulation(40), AdaptiveBatchSize(max_batch_size=4)])
    with pytest.raises(ValueError, match="max_batch_size=4"), learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    assert learn.gradient_accumulation.run


@pytest.mark.parametrize(
    ("most", "samples", "says"), [(20, 403, "more than max_batch_size=20"), (None, 30, "more than the 30 samples")]
)
def test_an_accumulated_batch_that_is_too_large_is_told_by_its_name(most, samples, says) -> None:
    learn = make_learner(n=samples)
    learn.add_cbs([GradientAccumulation(30), AdaptiveBatchSize(max_batch_size=most)])
    with pytest.raises(ValueError, match=f"GradientAccumulation begins with steps of 40 .*{says}"), learn.no_bar():
        learn.fit(1, 1e-2)


def test_a_batch_cancelled_between_its_pieces_leaves_no_gradient() -> None:
    """The gradient of the pieces before was added to the next batch's, and after_batch had a piece for the batch."""

    class Cancels(Callback):
        def __init__(self) -> None:
            self.losses, self.found, self.sizes = 0, [], []

        def before_batch(self) -> None:
            if self.learn.training:
                gradients = [p.grad for p in self.learn.model.parameters() if p.grad is not None]
                self.found.append(any(bool(g.any()) for g in gradients))

        def after_loss(self) -> None:
            self.losses += self.learn.training
            if self.losses == 6 and self.learn.training:  # the second piece of the second batch
                raise CancelBatchException

        def after_batch(self) -> None:
            if self.learn.training:
                self.sizes.append(len(self.learn.yb[0]))

    learn, cancels = make_learner(n=403), Cancels()
    bs = learn.dls.bs
    learn.add_cb(GradientAccumulation(4 * bs))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2, cbs=[AdaptiveBatchSize(max_batch_size=4 * bs), cancels])
    assert cancels.losses > 8 and not any(cancels.found)
    assert cancels.sizes[:3] == [4 * bs] * 3


def test_a_learner_with_a_backward_and_step_of_its_own_makes_them_itself() -> None:
    """Ours had been made in their place, without a word."""

    class Twice(Learner):
        calls = 0

        def _do_grad_opt(self) -> None:
            self.calls += 1
            self.loss_grad = 2 * self.loss_grad
            super()._do_grad_opt()

    learn, stock = make_learner(n=403), make_learner(n=403)
    learn.__class__ = stock.__class__ = Twice
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2, cbs=AdaptiveBatchSize(overhead=0))
    with stock.no_bar(), stock.no_logging():
        stock.fit(1, 1e-2)
    assert learn.calls == stock.calls > 0
    assert same(weights(learn), weights(stock))


def test_a_loaded_state_is_the_callbacks_until_the_next_fit() -> None:
    learn, callback = make_learner(n=403), AdaptiveBatchSize(**GROWS)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2, cbs=callback)
        first = callback.state_dict()
        learn.fit(2, 1e-2, cbs=callback)
    callback.load_state_dict(first)
    assert callback.state_dict() == first
