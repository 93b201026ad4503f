import io
import math
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from adaptbs.decision.timer import NEWS
from adaptbs.memory.limit import MemoryLimit
from adaptbs.run.controller import Controller
from adaptbs.run.look_ahead import NoLookAhead
from adaptbs.run.settings import Settings
from adaptbs.run.tracker import BatchTracker
from adaptbs.sampling.batch_sampler import AdaptiveBatchSampler
from adaptbs.timing.duty_cycle import AT_ONCE, IDLE, KEEP_UP, OVER_RUN
from adaptbs.types import COUPLED, Measurement, SquaredNorms


def made(norms: SquaredNorms, caveat: str | None = None) -> Measurement:
    return Measurement(norms, "halves", "asked for", caveat)


NOISY = made(SquaredNorms(1, 1 + 1e6, 2, 1 + 5e5))  # |G|^2 = 1, tr(Sigma) = 10^6, and no doubt about either


class Driven(Controller):
    """A controller with a tracker that tells it of every step, as in a TrainingRun."""

    def start(self, epochs, device, memory) -> None:
        super().start(epochs, device, memory)
        self.tracker = BatchTracker(
            self.progress_tracker,
            self.start_batch_size,
            sample_efficiencies=self.sample_efficiencies,
            on_step_end=self.step_ended,
        )

    @property
    def lr_factor(self) -> float:
        return self.scales[self.tracker.current.cut_size].lr_factor

    @property
    def batches_left(self) -> int:
        return -(-(self.epoch_samples - self.tracker.epoch_position) // self.batch_size)

    def deliver(self, batches, queue):
        self.start_clock()
        return self.tracker.deliver(batches, queue, NoLookAhead())


def controller(n: int = 4000, start: int = 8, *, epochs: int | None = 1, adaptive: bool = True, views=(), **settings):
    settings = {"step_time": (1.0, 0.0), "overhead": 0.05} | settings
    made = Driven(Settings(**settings), batch_size=start, epoch_samples=n, adaptive=adaptive, views=views)
    made.start(epochs, torch.device("cpu"), MemoryLimit())
    return made


def run(run: Driven, norms: Measurement | None = None) -> list[int]:
    """One epoch, every batch measured to be `norms`; the sizes it delivered."""
    cut = AdaptiveBatchSampler(range(run.epoch_samples), lambda: run.batch_size, run.start_batch_size, drop_last=False)
    batches = iter(cut)
    sizes = []
    for batch in run.deliver(batches, cut.issued):
        sizes.append(len(batch))
        run.measured(norms)
    return sizes


def growing(*sizes: int, **settings) -> Driven:
    """A run of 64 samples that goes through these sizes, one a quarter."""
    wanted = iter(sizes)
    return controller(
        64, 4, target=lambda *_: next(wanted, sizes[-1]), decide_every=0.25, max_batch_size=16, **settings
    )  # fmt: skip


def test_without_measurements_the_batch_stays_as_it_is():
    quiet = controller()
    assert set(run(quiet)) == {8}
    assert set(quiet.history.to_dict()["reason"]) == {"start", "few measurements"}


def test_a_batch_far_below_the_noise_scale_doubles_up_to_its_limit():
    noisy = controller()
    sizes = run(noisy, NOISY)
    assert sizes[0] == 8
    assert all(b <= 2 * a for a, b in pairwise(sizes))
    assert noisy.batch_size == noisy.rules.max_batch_size == 32 * 8
    assert "max_batch_size" in noisy.history.to_dict()["reason"]


def test_far_from_its_aim_it_decides_as_soon_as_it_has_measured_enough():
    assert run(controller(), NOISY).count(8) == NEWS


def test_what_has_been_acted_on_is_not_acted_on_again():
    run_ = controller(6400, 64, decide_every=0.1)  # a decision is due every 10 batches of 64
    cut = AdaptiveBatchSampler(range(6400), lambda: run_.batch_size, 64, drop_last=False)
    sizes = []
    for step, batch in enumerate(run_.deliver(iter(cut), cut.issued)):
        sizes.append(len(batch))
        if step < NEWS or step == 30:
            run_.measured(NOISY)
    assert sizes[:NEWS] == [64] * NEWS
    assert sizes[NEWS:31] == [128] * (31 - NEWS)  # turn after turn without news
    assert 256 in sizes[31:33]  # (a batch is cut before the one in hand is measured)


@pytest.mark.parametrize(("phi", "decisions"), [(400, 2), (200, 1)])
def test_at_a_large_batch_only_when_it_is_four_times_too_small(phi, decisions):
    run_ = controller(64 * 20, 64, decide_every=0.5)  # 20 batches: decisions are due after 10 and, early, after 8
    cut = AdaptiveBatchSampler(range(64 * 9), lambda: run_.batch_size, 64, drop_last=False)
    batches = iter(cut)
    for _ in run_.deliver(batches, cut.issued):
        run_.measured(made(SquaredNorms(1, 1 + phi, 2, 1 + phi / 2)))
    assert len(run_.history.decisions()["event"]) == decisions  # the start among them


def test_the_limit_is_an_eighth_of_the_data_or_32_times_the_base_batch():
    assert controller(4000, 8).rules.max_batch_size == 256
    assert controller(1000, 5).rules.max_batch_size == 125
    assert controller(1000, 8).rules.max_batch_size == 124, "an even batch stays even"
    assert controller(4000, 8, base_batch_size=4).rules.max_batch_size == 128
    assert controller(64, 32).rules.max_batch_size == 32


def test_the_users_limit_is_kept():
    assert max(run(controller(max_batch_size=20), NOISY)) == 20


def test_each_size_is_asked_of_the_target_once_a_quarter():
    assert run(growing(8, 16, 8)) == [4, 4, 4, 4, 8, 8, 16, 8, 8]


def test_the_learning_rate_follows_the_size_a_batch_was_cut_at():
    run_ = controller(24, 4, target=lambda *_: 16, decide_every=0.1, lr_scaling="linear", max_batch_size=16)
    cut = AdaptiveBatchSampler(range(24), lambda: run_.batch_size, 4, drop_last=False)
    batches = iter(cut)
    seen = [(len(batch), run_.lr_factor) for batch in run_.deliver(batches, cut.issued)]
    assert seen == [(4, 1), (16, 4), (4, 4)]  # the short last one keeps its learning rate


def test_a_learning_rate_stays_where_the_latest_measurements_resolve_nothing():
    run_ = controller(8000, 64, decide_every=0.1, max_batch_size=256)
    cut = AdaptiveBatchSampler(range(8000), lambda: run_.batch_size, 64, drop_last=False)
    clear = made(SquaredNorms(1, 1 + 400, 2, 1 + 200))  # |G|^2 = 1
    lost = made(SquaredNorms(1, 2000.0, 2, 900.0))  # |G|^2 = -200
    factors, grown = [], False
    for batch in run_.deliver(iter(cut), cut.issued):
        grown = grown or len(batch) > 64
        run_.measured(lost if grown else clear)
        factors.append((run_.noise_scale, run_.lr_factor))
    at_first = next(factor for _, factor in factors if factor > 1)
    unresolved = [factor for estimate, factor in factors if estimate is not None and not estimate.believed]
    assert unresolved and set(unresolved) == {at_first}
    assert not run_.noise_scale.believed, "what is shown is the latest"
    resumed = controller(8000, 64, decide_every=0.1, max_batch_size=256)
    resumed.load_state_dict(run_.state_dict())
    assert resumed.scales[run_.batch_size] == run_.scales[run_.batch_size]


@pytest.mark.parametrize(("epochs", "most"), [(None, 128), (1, 512)])
def test_where_the_length_is_not_known_only_a_clear_estimate_lets_it_grow_beyond_the_early_limit(epochs, most):
    run_ = controller(20_000, 64, epochs=epochs, decide_every=0.1, max_batch_size=512)
    cut = AdaptiveBatchSampler(range(20_000), lambda: run_.batch_size, 64, drop_last=False)
    sizes = []
    for i, batch in enumerate(run_.deliver(iter(cut), cut.issued)):
        grad_sq = 1 + (9 if i % 2 else -9)  # around 1: no upper limit to B_simple, but a one-sigma lower one
        run_.measured(made(SquaredNorms(1, grad_sq + 9000, 2, grad_sq + 4500)))
        sizes.append(len(batch))
    assert run_.noise_scale.high == math.inf and run_.noise_scale.cautious > 512
    assert max(sizes) == most


def test_measuring_keeps_to_its_share_when_the_batch_grows():
    run_ = controller(64_000, 8, max_batch_size=64)
    steps = measured = 0
    cut = AdaptiveBatchSampler(range(64_000), lambda: run_.batch_size, 8, drop_last=False)
    batches = iter(cut)
    for _ in run_.deliver(batches, cut.issued):
        steps += 1
        if run_.measure_next_step():
            measured += 1
            with run_.measuring(run_.tracker.latest_fetched.num_samples):
                run_.measured(NOISY)
    # Steps take a second whatever their size: 8,000 s it would have been, of which 5 % is more than 3 times 5 % of what
    # it takes.
    assert 0.1 * steps < measured < 0.16 * steps


@pytest.mark.parametrize(("adaptive", "factor"), [(True, 2), (False, 4)])
def test_auto_scaling_goes_by_the_optimizer(adaptive, factor):
    run_ = controller(64, 16, adaptive=adaptive, base_batch_size=4)
    assert run_.lr_factor == factor  # (no noise scale is known yet)


def test_progress_is_the_share_of_the_run():
    run_ = controller(100, 8, epochs=2)
    run(run_)
    assert run_.progress == 0.5
    run(run_)
    run(run_)  # longer than was said
    assert run_.progress == 1


def test_the_batches_left_of_an_epoch_are_counted_at_the_size_of_now():
    run_ = growing(8)
    left = []
    cut = AdaptiveBatchSampler(range(64), lambda: run_.batch_size, 4, drop_last=False)
    batches = iter(cut)
    for _ in run_.deliver(batches, cut.issued):
        left.append(run_.batches_left)
    assert left == [15, 14, 13, 12, 5, 4, 3, 2, 1, 0]


def test_it_remembers_whether_any_batch_was_cut_at_another_size():
    held, grown = controller(64, 4), growing(8)
    run(held)
    run(grown)
    assert not held.tracker.ever_changed
    assert grown.tracker.ever_changed


def test_history_has_the_start_every_measurement_and_every_decision():
    run_ = growing(8, overhead=0.05)
    run(run_, made(SquaredNorms(2, 5.0, 4, 4.0)))
    columns = run_.history.to_dict()
    assert columns["event"][0] == "start"
    assert columns["event"].count("decision") == 4
    assert columns["event"].count("measurement") == 10
    first = columns["event"].index("measurement")
    assert (columns["grad_sq"][first], columns["trace"][first], columns["batch_size"][first]) == (3, 4, 4)
    assert (columns["samples"][first], columns["progress"][first]) == (4, 4 / 64)
    decision = run_.history.records[-1]
    assert decision["noise_scale"] == pytest.approx(4 / 3)
    assert decision["global_batch_size"] == decision["batch_size"] == 8
    assert decision["lr_factor"] == pytest.approx(2**0.5)


def test_where_the_length_of_the_run_is_not_known_history_says_so():
    run_ = controller(64, 4, epochs=None)
    run(run_)
    assert set(run_.history.to_dict()["progress"]) == {None}


def test_without_overhead_nothing_is_to_be_measured():
    run_ = controller(overhead=0)
    assert not any(run_.measure_next_step() for _ in range(1000))


def measured_in(run_: Driven, steps: int) -> int:
    """How many of this many batches are measured, with `NOISY` as the result."""
    measured = 0
    start = run_.start_batch_size
    cut = AdaptiveBatchSampler(range(run_.epoch_samples), lambda: run_.batch_size, start, drop_last=False)
    batches = iter(cut)
    for _ in islice(run_.deliver(batches, cut.issued), steps):
        if run_.measure_next_step():
            measured += 1
            with run_.measuring(run_.tracker.latest_fetched.num_samples):
                run_.measured(NOISY)
    return measured


def test_measuring_uses_up_its_share_of_the_time():
    # 10,000 steps of a second, and a measurement counted as one more step: 5 % of 10,000
    held = controller(80_000, 8, max_batch_size=8, target=lambda *_: 8)
    assert measured_in(held, 10_000) == pytest.approx(490, abs=10)


@pytest.mark.parametrize(("step_time", "last", "with_news"), [((1.0, 0.0), 0.8, 5), ((0.5, 0.5 / 64), 0.6, 6)])
def test_the_budget_of_a_short_run_that_grows_lasts(step_time, last, with_news):
    # 700 steps at first, and 14 measurements at the last size: where each decision had some, they would soon be gone.
    run_ = controller(700 * 64, 64, step_time=step_time, overhead=0.02, max_batch_size=512, budget="epochs")
    cut = AdaptiveBatchSampler(range(run_.epoch_samples), lambda: run_.batch_size, 64, drop_last=False)
    measured = []
    for batch in run_.deliver(iter(cut), cut.issued):
        if run_.measure_next_step():
            run_.measuring_step()
            run_.measured(made(SquaredNorms(1, 1 + 1000, len(batch), 1 + 1000 / len(batch))))
            measured.append(run_.progress)
    assert run_.batch_size > 256
    beside = (AT_ONCE + OVER_RUN) * run_.step_time(512) / (700 * run_.step_time(64))  # at the dearest
    assert run_.overhead_spent.share < 0.025 + beside
    assert measured[-1] > last
    reasons = run_.history.decisions()["reason"][1:]
    assert len(reasons) < 24
    assert sum(reason not in ("nothing new", "few measurements") for reason in reasons) >= with_news


def test_at_a_limit_that_the_noise_scale_is_far_above_it_measures_less():
    capped = controller(80_000, 8, max_batch_size=8)
    assert measured_in(capped, 10_000) == pytest.approx(max(KEEP_UP, 10_000 * IDLE * 0.05), abs=40)


def test_it_goes_on_from_its_state_through_a_file_as_if_never_stopped():
    whole, stopped, resumed = (controller(400, 8, epochs=2) for _ in range(3))
    run(whole, NOISY)
    run(stopped, NOISY)
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file))
    assert run(resumed, NOISY) == run(whole, NOISY)
    assert resumed.history.records == whole.history.records
    assert resumed.noise_scale == whole.noise_scale


def test_numpy_numbers_do_not_get_into_a_checkpoint():
    run_ = controller(
        64, np.int64(4), max_batch_size=np.int64(8), base_batch_size=np.int64(4), decide_every=0.25,
        target=lambda *_: np.float64(8), lr_scaling=lambda k, _: np.sqrt(k),
    )  # fmt: skip
    run(run_)
    file = io.BytesIO()
    torch.save(run_.state_dict(), file)
    file.seek(0)
    assert torch.load(file)["batch_size"] == 8


def test_a_state_of_another_run_is_refused():
    state = controller(400, 8).state_dict()
    other = controller(400, 16)
    with pytest.raises(ValueError, match=r"start_batch_size=8, this one 16.*same dataset, batch_size, accumulation"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="epoch_samples=400, this one 800"):
        controller(800, 8).load_state_dict(state)
    assert other.batch_size == 16


def test_step_times_come_from_the_steps_where_none_is_given():
    run_ = controller(128, 4, step_time=None, target=lambda *_: 8, decide_every=0.25)
    run(run_)
    fitted = run_.step_time
    assert fitted is not None
    assert 0 < fitted(4) < math.inf


def test_a_loss_that_couples_samples_holds_the_batch_and_says_so():
    coupled = controller()
    assert set(run(coupled, made(NOISY.norms, caveat=COUPLED))) == {8}
    decisions = coupled.history.decisions()
    assert set(decisions["reason"][1:]) == set(decisions["doubt"][1:]) == {COUPLED}


def test_other_caveats_are_spoken_and_do_not_hold():
    doubtful = controller()
    run(doubtful, made(NOISY.norms, caveat="BatchNorm over 4"))
    assert doubtful.batch_size > 8
    assert doubtful.history.to_dict()["doubt"][-1] == "BatchNorm over 4"


def test_a_measurement_that_is_not_finite_is_recorded_and_not_used():
    run_ = controller()
    run(run_, made(SquaredNorms(1, float("inf"), 2, 1.0)))
    columns = run_.history.to_dict()
    of_measurements = {d for d, e in zip(columns["doubt"], columns["event"], strict=True) if e == "measurement"}
    assert of_measurements == {"not finite"}
    assert set(run_.history.decisions()["doubt"][1:]) == {"non-finite steps"}
    assert run_.noise_scale is None
    assert run_.batch_size == 8


def test_views_are_reported_beside_and_decide_nothing():
    views = {"adam": SquaredNorms(1, 11.0, 2, 6.0), "group 1": SquaredNorms(1, 3.0, 2, 2.0)}  # B_simple 10 and 2
    plain, viewed = controller(), controller(views=("adam", "group 0", "group 1"))
    assert run(viewed, made(replace(NOISY.norms, views=views))) == run(plain, NOISY)
    columns = viewed.history.to_dict()
    assert columns["noise_scale_adam"][-1] == pytest.approx(10)
    assert columns["low_group_1"][-1] == pytest.approx(2)
    assert set(columns["high_group_0"]) == {None}
    assert viewed.views["group 1"].simple == pytest.approx(2)


def test_views_go_on_where_the_run_was_stopped():
    views = {"adam": SquaredNorms(1, 11.0, 2, 6.0)}
    first, second, without = controller(views=("adam",)), controller(views=("adam",)), controller()
    run(first, made(replace(NOISY.norms, views=views)))
    state = first.state_dict()
    second.load_state_dict(state)
    without.load_state_dict(state)  # a run may go on without them
    assert second._noise_scales.estimate_views(0.9)["adam"].simple == pytest.approx(10)
    assert len(second.history) == len(without.history) == len(first.history)


def test_the_log_says_when_doubt_comes_and_goes(caplog):
    with caplog.at_level("INFO", "adaptbs"):
        run(controller(), NOISY)
    assert "the noise scale is" not in caplog.text
    with caplog.at_level("INFO", "adaptbs"):
        run(controller(), made(SquaredNorms(1, 5.0, 2, 5.0)))  # no noise at all, so no limit above 0
    assert "not reliable as a number (nothing resolved)" in caplog.text
