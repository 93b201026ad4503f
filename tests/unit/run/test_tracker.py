from collections import defaultdict, deque

import pytest
import torch

from adaptbs.decision.progress import Progress
from adaptbs.run.look_ahead import DetectLookAhead, NoLookAhead
from adaptbs.run.tracker import BatchTracker
from adaptbs.sampling import BatchInfo


def parameter() -> torch.Tensor:
    return torch.nn.Parameter(torch.ones(1))


def tracking(progress: Progress, start: int, noted: list[str]) -> BatchTracker:
    return BatchTracker(
        progress,
        start,
        sample_efficiencies=defaultdict(lambda: 1.0),
        on_step_end=lambda num_samples, cut_size, longest: noted.append(f"step {num_samples}"),
    )


def events(loop, trained: list[int | None], p: torch.Tensor, sizes=(1, 2, 3, 4), ends_step=lambda i: True) -> list[str]:
    """What a tracker takes note of while batches are fetched and, between fetches, one of them is trained on.

    Args:
        trained: number of the batch that a backward pass is made of, after each fetch; None: of none.
    """
    noted: list[str] = []
    queue = deque(BatchInfo(size, size, ends_step(i)) for i, size in enumerate(sizes))
    tracker = tracking(Progress(sum(sizes), 1), sizes[0], noted)
    delivered = tracker.deliver(range(1, len(sizes) + 1), queue, loop)
    for batch, work in zip(delivered, [*trained, None], strict=False):
        noted.append(f"fetched {batch}, at work on {tracker.current.num_samples}")
        if work is not None:
            (p * work).sum().backward()
    return [*noted, f"at work on {tracker.current.num_samples}"]


def test_a_loop_that_trains_on_each_batch_before_the_next():
    expected = [
        "fetched 1, at work on 1", "step 1", "fetched 2, at work on 2", "step 2", "fetched 3, at work on 3", "step 3",
        "fetched 4, at work on 4", "step 4", "at work on 4",
    ]  # fmt: skip
    p = parameter()
    assert events(DetectLookAhead([p]), [1, 2, 3, 4], p) == expected
    assert events(NoLookAhead(), [None] * 4, p) == expected


def test_a_loop_that_looks_one_batch_ahead_is_at_work_on_the_one_before():
    p = parameter()
    assert events(DetectLookAhead([p]), [None, 1, 2, 3], p) == [
        "fetched 1, at work on 1", "fetched 2, at work on 1", "step 1", "fetched 3, at work on 2", "step 2",
        "fetched 4, at work on 3", "step 3", "at work on 4",
    ]  # fmt: skip


def test_where_nobody_trains_the_third_batch_shows_it():
    p = parameter()
    assert events(DetectLookAhead([p]), [None] * 4, p)[2:6] == [
        "step 1", "step 2", "fetched 3, at work on 3", "step 3",
    ]  # fmt: skip


def test_a_batch_without_a_step_after_the_first_makes_no_look_ahead():
    """As under a GradScaler that leaves a step out, or a loop that passes over a batch."""
    p = parameter()
    seen = events(DetectLookAhead([p]), [1, None, None, 4], p)
    assert [line for line in seen if "fetched" in line] == [f"fetched {i}, at work on {i}" for i in (1, 2, 3, 4)]


def test_a_step_of_several_batches_is_timed_whole():
    p = parameter()
    seen = events(DetectLookAhead([p]), [1, 2, 3, 4], p, ends_step=lambda i: i % 2 == 1)
    assert [line for line in seen if "step" in line] == ["step 3", "step 7"]


def test_a_step_holds_no_samples_of_one_that_was_never_ended():
    """As of an epoch broken off, and of the last batch of one where the loop looks a batch ahead."""
    noted: list[str] = []
    tracker = tracking(Progress(4, 2), 2, noted)
    for _ in tracker.deliver([1, 2], deque([BatchInfo(2, 2)] * 2), NoLookAhead()):
        break
    assert noted == []
    list(tracker.deliver([1, 2], deque([BatchInfo(2, 2)] * 2), NoLookAhead()))
    assert noted == ["step 2", "step 2"]


def test_the_watch_is_over_at_the_batch_after_the_first_backward_pass():
    p = parameter()
    loop = DetectLookAhead([p])
    assert p._post_accumulate_grad_hooks
    loop.fetched()
    p.sum().backward()
    loop.fetched()
    assert not p._post_accumulate_grad_hooks
    assert (loop.begun, loop.wants_next()) == (2, 2)


def test_a_step_without_a_backward_pass_tells_as_well():
    p = parameter()
    loop = DetectLookAhead([p])
    loop.fetched()
    loop.works()
    assert loop.wants_next() == 1
    loop.fetched()
    assert loop.begun == 2


def test_what_does_not_train_is_not_watched():
    frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    loop = DetectLookAhead([frozen])
    loop.fetched()
    loop.fetched()
    assert (loop.begun, loop.wants_next()) == (1, 2)


def test_a_queue_that_belongs_to_another_iteration_is_an_error():
    delivery = tracking(Progress(4, 1), 4, [])
    with pytest.raises(RuntimeError, match="persistent workers serve one iteration at a time"):
        next(delivery.deliver([1], deque(), NoLookAhead()))


def test_an_epoch_broken_off_counts_as_one_and_an_empty_one_does_not():
    progress = Progress(100, 2)
    tracker = tracking(progress, 10, [])
    list(tracker.deliver([], deque(), NoLookAhead()))
    assert progress.epoch == 0
    batches = tracker.deliver([1, 2], deque([BatchInfo(10, 10)] * 2), NoLookAhead())
    next(batches)
    assert (tracker.epoch_position, tracker.under_way) == (10, True)
    batches.close()
    assert (progress.epoch, tracker.epoch_position, tracker.under_way) == (1, 0, False)


def test_a_saved_position_is_where_the_next_iteration_goes_on():
    first, second = (tracking(Progress(40, 1), 10, []) for _ in range(2))
    batches = first.deliver(range(4), deque([BatchInfo(10, 10)] * 4), NoLookAhead())
    next(batches), next(batches)
    second.load_state_dict(first.state_dict())
    assert (second.epoch_position, second.under_way) == (20, True)
    spans = []
    for _ in second.deliver(range(2), deque([BatchInfo(10, 10)] * 2), NoLookAhead()):
        spans.append(second.schedule_span)
    assert spans == [(20, 30), (30, 40)]


def test_what_is_not_new_is_neither_counted_nor_delivered():
    progress = Progress(40, 1)
    tracker = tracking(progress, 10, [])
    queue = deque([BatchInfo(10, 10)] * 2)
    assert list(tracker.deliver(range(4), queue, NoLookAhead(), is_new=lambda batch: batch >= 2)) == [2, 3]
    assert progress.samples == 20


def test_what_a_face_does_around_the_batches_comes_in_order_also_where_an_epoch_is_broken_off():
    class Events:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def begin_epoch(self) -> None:
            self.seen.append("begin")

        def before_batch(self, batch: object) -> None:
            self.seen.append(batch)

        def before_end(self) -> None:
            self.seen.append("about to end")

        def end_epoch(self) -> None:
            self.seen.append("end")

    events = Events()
    for batch in tracking(Progress(40, 1), 10, []).deliver(
        range(4), deque([BatchInfo(10, 10)] * 4), NoLookAhead(), events
    ):
        if batch == 2:
            break
    assert events.seen == ["begin", 0, 1, 2, "end"]
