"""The terms of a backward pass, and their sums over the passes of an optimizer step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .mean_gradient import dense, square, squared_norm, together
from .terms import NotNow, Term, Unsupported


class Pass:
    """The terms that one backward pass adds, parameter by parameter.

    Args:
        parameters: the watched parameters.
        task: torch's number of the backward pass.
        checking: True keeps the sums of the terms, to compare them with the gradients.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], task: int, *, checking: bool) -> None:
        self.task, self._tasks = task, set[int]()
        self.checking = checking
        #: True if another pass may follow through the same graph.
        self.keeps_graph: bool = torch._C._autograd._get_current_graph_task_keep_graph()
        # By the parameter's id: a tensor's own hash is a call, which adds up.
        self._held: dict[int, tuple[Tensor, Term]] = {}
        self.squares: list[Tensor] = []  # sum over examples of |c_i|^2, by parameter
        self.examples: dict[int, int] = {}
        self._uses: dict[int, int] = {}
        self.totals: dict[int, Tensor] = {}
        self.before = [p.grad for p in parameters if p.grad is not None]
        self.identity = identity(self.before)

    def enter_task(self, task: int) -> bool:
        """Enter a backward pass: this one, or one inside it, of a reentrant checkpoint. True at its first call."""
        is_new = task not in self._tasks
        self._tasks.add(task)
        return is_new

    def add(self, parameter: Tensor, term: Term, *, is_last: bool) -> None:
        """Add terms of a parameter. Terms of a parameter that is used several times are held until the pass ends."""
        key = id(parameter)
        if is_last and key not in self._held:
            self._count(parameter, term)
            return
        self._uses[key] = self._uses.get(key, 0) + 1
        if key in self._held:
            _, held = self._held[key]
            if held.examples != term.examples:
                raise Unsupported(
                    f"a layer is called on {held.examples} and on {term.examples} examples for one backward pass"
                )
            term = held.joined(term)
        self._held[key] = parameter, term

    @property
    def uses(self) -> int:
        """The largest number of calls of one layer in the pass."""
        return max(self._uses.values(), default=1)

    def release(self) -> None:
        """Count the held terms."""
        held, self._held = self._held, {}
        for parameter, term in held.values():
            self._count(parameter, term)

    def _count(self, parameter: Tensor, term: Term) -> None:
        key = id(parameter)
        if key in self.examples:
            raise Unsupported(
                "a layer gets several gradients in one backward pass, as inside a reentrant checkpoint or by a penalty "
                "on gradients"
            )
        self.examples[key] = term.examples
        self.squares.append(term.squared())
        if self.checking:
            self.totals[key] = term.total().reshape(parameter.shape)


class Step:
    """The backward passes of an optimizer step, from the first after its gradients were None or zero.

    Args:
        parameters: the watched parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters, self.ids = list(parameters), set(map(id, parameters))
        self._start()

    def _start(self) -> None:
        self.passes = self.uses = 0  # `uses`: of the latest pass
        self._squares: list[Tensor] = []
        self._examples: dict[int, list[int]] = {}  # by the parameter's id
        self._large: Tensor | None = None
        self._left: Tensor | None = None  # squared norm of what `.grad` held before the first pass
        self._after: list[tuple[int, int]] = []  # the gradients after the latest pass, see `identity`
        self._same: Tensor | None = None  # True if no pass found the gradients changed since the one before
        self._errors: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}  # squared norms of difference and gradient

    def begin(self, new: Pass) -> None:
        """Begin a pass. If the gradients are None or were set to zero, earlier passes do not belong to the step.

        Raises:
            NotNow: if the gradients were changed after the pass before, as by clipping or an unscaling.
        """
        if self.passes and not self._go_on(new):
            self._start()
        elif not self.passes:
            self._left = squared_norm(new.before) if new.before else None

    def _go_on(self, new: Pass) -> bool:
        """True if the gradients still hold the sum of the step's earlier passes."""
        before = new.before
        if not before:
            return False
        size = squared_norm(before)
        if new.identity != self._after:
            # It waits for the device, which happens only where gradients are changed in place and passes follow.
            if size.item() == 0:
                return False
            raise NotNow("the gradients were changed between two backward passes of the step")
        # A change by way of `.data` leaves no trace but the values.
        same = size == self.large()
        self._same = same if self._same is None else self._same & same
        return True

    def end(self, ended: Pass) -> None:
        """End a pass. It does not count if it has added to no `.grad`, such as a `torch.autograd.grad`."""
        ended.release()
        gradients = {id(p): p.grad for p in self.parameters if p.grad is not None}
        present = list(gradients.values())
        after = identity(present)
        if not gradients or after == ended.identity:
            return
        if not ended.before and not gradients.keys() <= ended.examples.keys():
            raise Unsupported("a weight is used outside its own layer's forward")
        if not ended.examples.keys() <= gradients.keys():
            raise Unsupported("a gradient is gone by the end of the backward pass")
        self.passes, self.uses = self.passes + 1, ended.uses
        self._squares += ended.squares
        for key, n in ended.examples.items():
            self._examples.setdefault(key, []).append(n)
        if not self._examples:
            raise Unsupported("a weight is used outside its own layer's forward")
        self._large = squared_norm(present)
        self._after = after
        if ended.checking:
            self._compare(ended, gradients)

    def _compare(self, ended: Pass, gradients: Mapping[int, Tensor]) -> None:
        """Take note of how far the gradients are from the sums of the terms."""
        for parameter in self.parameters:
            if (gradient := gradients.get(id(parameter))) is None:
                continue
            total = ended.totals.get(id(parameter))
            if total is not None and self.passes == 1:
                self._errors[parameter] = square(dense(total) - dense(gradient)), square(gradient)
            elif id(parameter) not in self._examples:  # then it was zero before, and has to be zero still
                self._errors[parameter] = square(gradient), square(gradient)

    def examples_by_pass(self) -> tuple[int, ...]:
        """Number of examples of each pass. Raises Unsupported if layers see different numbers."""
        most = max(self._examples.values(), key=sum)
        for seen in self._examples.values():
            if seen != most and Counter(seen) - Counter(most):
                raise Unsupported(f"its layers see different numbers of examples, {sum(seen)} and {sum(most)}")
        return tuple(most)

    def is_clean(self) -> bool:
        """True if the gradients were None before the first pass."""
        return self._left is None

    def left(self) -> float:
        """Squared norm of the gradients before the first pass; waits for the device."""
        return 0.0 if self._left is None else self._left.item()

    def small(self) -> Tensor:
        """sum_i |c_i|^2. nan if it is 0, as no target counts then, or if `.grad` held or became something else."""
        small = together(self._squares).sum()
        found = small > 0 if self._left is None else (small > 0) & (self._left.to(small.device) == 0)
        if self._same is not None:
            found = found & self._same.to(small.device)
        return torch.where(found, small, torch.nan)

    def large(self) -> Tensor:
        """|sum_i c_i|^2, before clipping."""
        assert self._large is not None
        return self._large

    def compared(self) -> tuple[list[nn.Parameter], Tensor]:
        """The parameters that were compared, and norms: of the whole gradient, and of each one's error and gradient."""
        squares = [self.large(), *(square for pair in self._errors.values() for square in pair)]
        return list(self._errors), together(squares).sqrt()


def identity(gradients: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Each tensor's identity, and the number of times that it was changed in place."""
    return [(id(g), g._version) for g in gradients]
