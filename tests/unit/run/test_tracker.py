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


def by_shares(epoch_samples: int, epochs: int, efficiency: float = 0.5):
    progress = Progress(epoch_samples, epochs)
    progress.end_by_progress(1.0)
    tracker = BatchTracker(
        progress, 10, sample_efficiencies=defaultdict(lambda: efficiency), on_step_end=lambda *_: None
    )
    return progress, tracker


def test_a_share_of_the_progress_goes_on_with_passes_and_ends_within_one():
    progress, tracker = by_shares(40, 2)
    queue, begun = deque(), []

    def next_pass():
        begun.append(progress.samples)
        queue.extend([BatchInfo(10, 10)] * 4)
        return iter(range(4))

    epoch = list(tracker.deliver(next_pass(), queue, NoLookAhead(), next_pass=next_pass))
    assert epoch == [0, 1, 2, 3] * 2 and begun == [0, 40]
    assert (progress.epoch, progress.samples, tracker.epoch_samples) == (1, 80, 80)
    assert not queue and not progress.complete


def test_it_ends_with_the_batch_that_crosses_its_end_and_leaves_the_rest_in_the_queue():
    progress, tracker = by_shares(40, 2, efficiency=0.8)
    queue = deque([BatchInfo(10, 10)] * 8)
    batches = iter(range(8))
    assert list(tracker.deliver(batches, queue, NoLookAhead())) == [0, 1, 2, 3, 4]
    assert len(queue) == 3, "no batch is fetched that is not delivered"
    assert list(tracker.deliver(batches, queue, NoLookAhead())) == [5, 6, 7]
    assert progress.effective_samples == pytest.approx(64)


def test_it_ends_with_a_whole_step():
    progress, tracker = by_shares(40, 2, efficiency=0.8)
    queue = deque(BatchInfo(20, 10, i % 2 == 1) for i in range(8))
    assert len(list(tracker.deliver(range(8), queue, NoLookAhead()))) == 6
    assert progress.effective_samples == pytest.approx(48)


def test_a_loop_that_looks_ahead_is_given_no_batch_beyond_it():
    progress, tracker = by_shares(40, 2, efficiency=0.8)
    queue, p = deque([BatchInfo(10, 10)] * 8), parameter()
    seen = []
    for batch in tracker.deliver(range(8), queue, DetectLookAhead([p])):
        seen.append(batch)
        if len(seen) > 1:
            p.sum().backward()  # of the batch before
    assert seen == [0, 1, 2, 3, 4] and progress.epoch == 1


def test_passes_without_a_batch_do_not_go_on_for_ever():
    _, tracker = by_shares(40, 2)
    asked = []

    def next_pass():
        asked.append(1)
        return ()

    assert list(tracker.deliver((), deque(), NoLookAhead(), next_pass=next_pass)) == []
    assert len(asked) == 1


def test_a_look_at_the_last_batch_of_a_share_leaves_its_end():
    _, tracker = by_shares(40, 2, efficiency=1.0)
    queue = deque([BatchInfo(10, 10)] * 8)
    delivered = []
    for batch in tracker.deliver(range(8), queue, NoLookAhead()):
        delivered.append(batch)
        if len(delivered) == 4:
            inner = tracker.deliver(range(8), deque([BatchInfo(10, 10)] * 8), NoLookAhead())
            next(inner)
            inner.close()
    assert delivered == [0, 1, 2, 3]
