import pytest
import torch

from adaptbs.memory.limit import MemoryLimit
from adaptbs.memory.pieces import run_in_pieces
from adaptbs.memory.recovery import SafeStep, is_out_of_memory
from tests.helpers.cuda import FakeCuda
from tests.helpers.out_of_memory import OTHER_WORDINGS, WORDINGS
from tests.simulated_device import SimulatedMemory

FORMS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 1.96 GiB total capacity)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB, other allocations: 3.00 GB)"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
]
OTHERS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("out of memory"),
    KeyboardInterrupt(),
    RuntimeError("Expected all tensors to be on the same device"),
]


@pytest.mark.parametrize("error", FORMS, ids=str)
def test_every_form_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_nothing_else_is_taken_for_it(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("source", WORDINGS)
def test_a_library_that_says_it_in_its_own_words(source):
    assert is_out_of_memory(RuntimeError(WORDINGS[source]))


@pytest.mark.parametrize("source", OTHER_WORDINGS)
def test_other_words_are_another_error(source):
    assert not is_out_of_memory(OTHER_WORDINGS[source])


def too_much(more_than: int, samples: int):
    calls, undone = [], []

    def run(pieces: int) -> int:
        calls.append(pieces)
        if -(-samples // pieces) > more_than:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return pieces

    return run, calls, undone


def test_what_fits_is_run_once():
    run, calls, undone = too_much(100, 64)
    cap = MemoryLimit()
    assert run_in_pieces(run, 64, cap, undo=lambda: undone.append(1), least=lambda: 1) == (1, None)
    assert (calls, undone, cap.largest_run, cap.smallest_failed) == ([1], [], 64, None)


def test_what_does_not_is_halved_until_it_does():
    run, calls, undone = too_much(20, 64)
    cap = MemoryLimit(SimulatedMemory(1))
    assert run_in_pieces(run, 64, cap, undo=lambda: undone.append(1), least=lambda: 1) == (4, 16)
    assert (calls, len(undone), cap.memory.released) == ([1, 2, 4], 2, 2)
    assert (cap.smallest_failed, cap.largest_run, cap.piece) == (32, 16, 16)
    again = run_in_pieces(run, 64, cap, undo=lambda: undone.append(1), least=lambda: 1)
    assert again == (4, None), "known from here on"
    assert calls == [1, 2, 4, 4]


def test_where_no_piece_fits_the_error_is_the_devices():
    run, calls, undone = too_much(0, 8)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run_in_pieces(run, 8, MemoryLimit(), undo=lambda: undone.append(1), least=lambda: 2)
    assert calls == [1, 2, 4]
    if hasattr(caught.value, "__notes__"):
        assert "no smaller one can be run" in caught.value.__notes__[0]


def test_other_errors_are_not_tried_again():
    def broken(pieces):
        raise ValueError("of the user's")

    with pytest.raises(ValueError, match="of the user's"):
        run_in_pieces(broken, 8, MemoryLimit(), undo=lambda: None, least=lambda: 1)


def stepping(fail_at: str):
    """An optimizer whose first step runs out before, in the middle of or after its state and weights are changed."""
    w = torch.nn.Parameter(torch.ones(3))
    optimizer, calls = torch.optim.AdamW([w], 0.1, foreach=False), []
    w.grad = torch.ones(3)

    def step():
        calls.append(1)
        if len(calls) == 1:
            if fail_at == "half-way":
                optimizer.step()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return optimizer.step()

    return w, optimizer, step, calls


def stepped_once() -> torch.Tensor:
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    torch.optim.AdamW([w], 0.1, foreach=False).step()
    return w.detach()


@pytest.mark.parametrize("fail_at", ["before", "half-way"])
@pytest.mark.parametrize("new", [True, False])
def test_a_step_is_taken_again(fail_at, new):
    w, optimizer, step, _ = stepping(fail_at)
    cap = MemoryLimit(SimulatedMemory(1) if new else None)  # where memory is not read, no copy is kept
    take_step = SafeStep(optimizer, lambda: [w])
    if fail_at == "half-way" and not new:
        with pytest.raises(torch.OutOfMemoryError):
            take_step(step, cap)
        return
    take_step(step, cap)
    assert torch.equal(w.detach(), stepped_once())
    assert optimizer.state[w]["step"] == 1
    assert cap.memory is None or cap.memory.released == 1


@pytest.mark.parametrize("fail_at", ["before", "half-way"])
def test_a_later_step_is_taken_again_if_it_had_changed_nothing(fail_at):
    w, optimizer, step, _ = stepping(fail_at)
    cap, take_step = MemoryLimit(SimulatedMemory(1)), SafeStep(optimizer, lambda: [w])
    take_step(optimizer.step, cap)
    if fail_at == "half-way":
        with pytest.raises(torch.OutOfMemoryError):
            take_step(step, cap)
        return
    take_step(step, cap)
    assert optimizer.state[w]["step"] == 2 and cap.memory.released == 1


def test_a_step_that_runs_out_again_is_an_error():
    w, optimizer, _, _ = stepping("before")

    def step():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        SafeStep(optimizer, lambda: [w])(step, MemoryLimit())


def test_the_first_step_alone_is_copied_to_the_host():
    with FakeCuda() as cuda:
        model = cuda.place(torch.nn.Linear(64, 64))
        weights = sum(4 * p.numel() for p in model.parameters())
        optimizer, cap = torch.optim.AdamW(model.parameters(), foreach=False), MemoryLimit(SimulatedMemory(1))
        take_step = SafeStep(optimizer, model.parameters)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        take_step(lambda: None, cap)  # a GradScaler skips it
        take_step(optimizer.step, cap)
        for size in (8, 16, 32):
            cap.ran(size)
            take_step(optimizer.step, cap)
        assert cuda.to_host == 2 * weights


class CountsLookUps(torch.optim.AdamW):
    """Counts how often the state of a parameter is looked up."""

    looked_up = 0

    def watch(self) -> "CountsLookUps":
        class State(dict):
            def get(state, *args):
                self.looked_up += 1
                return super().get(*args)

        self.state = State(self.state)
        return self


def test_a_step_does_not_look_up_what_it_changes_again():
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(50)]
    for w in weights:
        w.grad = torch.ones(3)
    optimizer = CountsLookUps(weights, 0.1, foreach=False)
    take_step, cap = SafeStep(optimizer, lambda: weights), MemoryLimit()
    take_step(optimizer.step, cap)
    optimizer.watch()
    take_step(optimizer.step, cap)
    before = optimizer.looked_up
    for _ in range(10):
        take_step(optimizer.step, cap)
    assert optimizer.looked_up == before


@pytest.mark.parametrize("change", ["load_state_dict", "add_param_group"])
def test_state_that_is_replaced_is_looked_up(change):
    w, late = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    w.grad = late.grad = torch.ones(3)
    optimizer, weights = torch.optim.AdamW([w], 0.1, foreach=False), [w]
    take_step, cap = SafeStep(optimizer, lambda: weights), MemoryLimit()
    take_step(optimizer.step, cap)
    take_step(optimizer.step, cap)
    if change == "load_state_dict":
        optimizer.load_state_dict(optimizer.state_dict())
        changed = optimizer.state[w]["exp_avg"]
    else:
        optimizer.add_param_group({"params": [late]})
        weights.append(late)
        take_step(optimizer.step, cap)
        changed = optimizer.state[late]["exp_avg"]

    def half_way():
        changed.add_(1)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        take_step(half_way, cap)
    if hasattr(caught.value, "__notes__"):
        assert "cannot undo that" in caught.value.__notes__[0]


def test_where_running_out_would_end_the_process_a_step_is_not_looked_after():
    w = torch.zeros(1, requires_grad=True)
    memory = SimulatedMemory(1)
    memory.careful = True
    taken = []
    take_step = SafeStep(torch.optim.SGD([w], 0.1), lambda: pytest.fail("its tensors were looked up"))
    assert take_step(lambda: taken.append(1) or "stepped", MemoryLimit(memory)) == "stepped"
    assert taken == [1]
