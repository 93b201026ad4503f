"""Squared norms from the training step that really happens, by hooks on the layers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..types import SquaredNorms
from .after_backward import after_backward
from .arguments import Inputs, detached, in_order
from .attention import watch_projections
from .batch_dimension import BatchDimensions
from .checkpoints import Calls, in_checkpoint
from .comparisons import Comparisons
from .formulas import ties_examples
from .layer_hook import GradientHook, LayerHook, on_gradient
from .layers import Watched, state_of
from .leaf import by_differentiating
from .mean_gradient import HALF
from .passes import Pass, Step
from .shared_lookups import SharedLookups
from .terms import NotNow, Term, Unsupported
from .without_autocast import without_autocast

LOCK = threading.RLock()  # layers on several devices have their gradients in several threads
F = TypeVar("F", bound=Callable[..., Any])


class BegunBeforeError(NotNow):
    """Gradients had been added up before the step was watched."""


class InStep:
    """Squared norms from the terms c_1 ... c_n of a step's gradient, n examples, by watching the step itself.

    The gradient of the user's loss is sum_i c_i, with one term for each example: for a mean loss c_i = g_i/n, for a sum
    c_i = g_i. small = n sum |c_i|^2 at 1 sample and large = |sum c_i|^2 at n samples. For a mean loss these are
    mean |g_i|^2 and |mean g_i|^2, so |G|^2 is the mean of g_i . g_j over all i != j, and tr(Sigma) is the sample
    variance of the g_i: unbiased for independent examples. A factor on the loss (a sum, a loss scale, 1/k under
    accumulation) leaves B_simple as it is; |G|^2 and tr(Sigma) carry that factor squared.

    Nothing is run twice and nothing has to be restored. Each layer's squared norms are computed when its gradient
    arrives, so nothing is held longer than autograd holds it, but for a layer used several times in a pass, whose terms
    are added up first. At the first step, whenever trained parameters, modes or the user's hooks change, and at some
    later steps, each parameter's sum of terms is compared with its gradient.

    Args:
        model: the model that the loop trains.
        parameters: returns those that the optimizer steps, in any order. None: all that are trainable.

    Attributes:
        comparisons: those of the sums of terms with the gradients.

    Source: Goodfellow 2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679.
    """

    def __init__(self, model: nn.Module, parameters: Callable[[], Sequence[nn.Parameter]] | None = None) -> None:
        self._model, self._parameters = model, parameters
        self._watched: Watched | None = None
        self._batch_dimensions = BatchDimensions(model)
        self.comparisons = Comparisons(model)
        self._sets_to_zero = False  # True once the loop is known to set gradients to zero instead of None
        self._handles: list[RemovableHandle | GradientHook] = []
        self._failure: Exception | None = None
        self._sizes: tuple[int, ...] = ()
        self._computing: set[int] = set()  # threads that are inside one of these hooks
        self._inputs: list[ref[Inputs]] = []  # of each call, which goes with its graph
        self._calls, self._lookups = Calls(), SharedLookups()  # `_calls`: those inside checkpoints
        self._step = Step([])
        self._pass: Pass | None = None
        self._announced: dict[int, int] = {}  # uses of each parameter in the pass to come, by its id

    @property
    def is_armed(self) -> bool:
        """True while the hooks are on the layers."""
        return bool(self._handles)

    def arm(self, *sizes: int) -> None:
        """Put the hooks on the layers, until `disarm`.

        Args:
            sizes: lengths of the batches that may come, samples. A layer whose second dimension has such a length, and
                its first has not, is taken to have the positions of a sequence first.

        Raises:
            Unsupported: if the model cannot be measured in its step.
        """
        self.disarm()
        before = state_of(self._model)
        if self._watched is None or self._watched.state != before:
            self._watched = Watched(self._model, self._parameters() if self._parameters is not None else ())
        watched = self._watched
        if watched.why_not is not None:
            raise Unsupported(watched.why_not)
        self._sizes, self._failure, self._step, self._pass = sizes, None, Step(watched.parameters), None
        self._announced.clear()
        self._thread = threading.get_ident()
        self._in_half = False  # True if a gradient arrived in half precision
        self._checking = self.comparisons.is_due(watched.key, sizes)
        called = LayerHook(self._guarded(self._called))
        self._handles += [layer.register_forward_hook(called, with_kwargs=True) for layer in watched.layers]
        if self.comparisons.is_first:
            # A gradient may arrive at a parameter before any at a layer, where its layer does not see all of its uses.
            begins = self._guarded(self._current_pass)
            self._handles += [GradientHook(p, begins) for p in watched.parameters]
            before = state_of(self._model)
        self._before = before

    def expect(self, *sizes: int) -> None:
        """Say which lengths the coming batches may have, while armed."""
        self._sizes = sizes

    def disarm(self) -> None:
        """Take the hooks off the layers, and drop what has been seen."""
        for handle in self._handles:
            handle.remove()
        self._forget_pass()
        self._calls.clear()
        self._handles, self._step = [], Step([])

    @property
    def examples(self) -> tuple[int, ...]:
        """Number of examples of each backward pass."""
        return self._step.examples_by_pass()

    @property
    def uses(self) -> int:
        """The most calls of a layer in the latest backward pass."""
        return self._step.uses

    def norms(self) -> SquaredNorms | None:
        """Squared norms of the backward passes since the gradients were None, on the device. None if there were none.

        The first time that `.grad` was not None when the first of these passes began, this waits for the device to see
        whether it was zero. In a loop that sets gradients to zero the norms are nan if it is not in a later step. They
        are nan too if `.grad` was changed unseen between two of them, or if they turn out to be wrong (`Comparisons`).

        Raises:
            Unsupported: if what was seen is not all of the step's gradient. No parameter is ever left out silently.
            BegunBeforeError: if the step had begun before it was watched.
            NotNow: if another step may be measured.
            Exception: whatever a hook raised.
        """
        if self._handles and (why := self._before.change_of_parameters(self._model)):
            raise NotNow(f"{why} after the step's batch was delivered")
        if self._failure is not None:
            raise self._failure
        if not self._step.passes:
            return None
        n = sum(self.examples)
        if not self._sets_to_zero and not self._step.is_clean():
            if self._step.left() != 0:
                raise BegunBeforeError("the step had begun before it was watched")
            self._sets_to_zero = True
        small = self.comparisons.take(self._step, compare=self._checking, in_half=self._in_half)
        return SquaredNorms(1, n * small, n, self._step.large())

    def _guarded(self, function: F, step: Step | None = None) -> F:
        """The same function, which keeps a failure instead of raising it. It does nothing but in `step`, if given."""

        def safe(*args: Any, **kwargs: Any) -> None:
            thread = threading.get_ident()
            if thread in self._computing or self._failure is not None or not self._handles:
                return
            if torch.compiler.is_compiling() or (step is not None and step is not self._step):
                return
            self._computing.add(thread)
            try:
                function(*args, **kwargs)
            except Exception as error:  # such as memory running out here: the user's step goes on
                self._failure = error.with_traceback(None)  # its frames would keep tensors alive
                self._forget_pass()  # whose backward pass would else let go of none of its inputs
            finally:
                self._computing.discard(thread)

        return safe  # type: ignore[return-value]

    def _called(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        assert self._watched is not None
        if threading.get_ident() != self._thread and torch._C._current_graph_task_id() == -1:
            return  # of a thread that predicts beside the loop
        inputs = in_order(layer, args, kwargs) if kwargs else args
        if isinstance(layer, nn.MultiheadAttention):
            if output[0].requires_grad:
                self._forward()
                watch_projections(layer, inputs, output[0], self._announce, self._arrived, self._guarded)
            return
        if not isinstance(output, Tensor):
            raise Unsupported(f"a {type(layer).__name__} does not return one tensor")
        if not output.requires_grad:
            return
        if any(isinstance(x, Tensor) and x.is_nested for x in (*inputs, output)):
            raise Unsupported(f"a {type(layer).__name__} is called on a nested tensor, whose rows differ in shape")
        backward = self._forward()
        own, formula = self._watched.layers[layer], self._watched.formulas[layer]
        if ties_examples(layer) and (own or any(isinstance(x, Tensor) and x.requires_grad for x in inputs)):
            raise Unsupported(f"a {type(layer).__name__} in training mode ties the examples of a batch together")
        if not own:  # a BatchNorm
            return
        for parameter in own:
            # A checkpoint calls its layers again within the backward pass. Those that were called before are known.
            if not backward or id(parameter) not in self._announced:
                self._announce(parameter)

        checkpointed = in_checkpoint()
        lookup = None if checkpointed else self._lookups.note_call(layer, output)

        def use(inputs: Sequence[Any], g: Tensor) -> None:
            self._in_half |= g.dtype in HALF
            with without_autocast(g.device.type):
                *rows, g = self._batch_dimensions.examples_first(layer, [*inputs, g.detach()], self._sizes)
                waits = self._lookups.take_gradient(lookup, inputs, rows, g, self._sizes)
                self._arrived({} if waits else formula(layer, rows, g))

        # torch differentiates no layer by itself while a checkpoint is run again, so such a layer's inputs are kept.
        if checkpointed and formula is not by_differentiating:
            if backward and self._calls.knows(layer):
                return  # it is being run again
            if not self._calls.knows(layer):
                again = LayerHook(self._guarded(self._called_again))
                self._handles.append(layer.register_forward_pre_hook(again, with_kwargs=True))
            arrives: Callable[[Tensor], None] = self._calls.add(layer, use, self._current_pass).arrives
        else:
            call = Inputs(detached(inputs), use)
            self._inputs.append(ref(call))
            arrives = call.arrives
        on_gradient(output, self._guarded(arrives, self._step))

    def _called_again(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch._C._current_graph_task_id() != -1 and in_checkpoint():
            self._calls.run_again(layer, detached(in_order(layer, args, kwargs) if kwargs else args))

    def _forward(self) -> bool:
        """Take note of a layer's call. True if it is made within a backward pass, as by a checkpoint."""
        backward: bool = torch._C._current_graph_task_id() != -1
        if not backward and self._pass is not None:  # the pass was broken off, as where memory ran out
            self._forget_calls()
        return backward

    def _forget_calls(self) -> None:
        self._pass = None
        self._announced.clear()
        self._lookups.clear()
        self._calls.forget()

    def _forget_pass(self) -> None:
        """Let go of what is held for a pass. Whoever keeps a loss keeps its graph, and with it these hooks."""
        for known in self._inputs:
            if (call := known()) is not None:
                call.drop()
        self._inputs = []
        self._forget_calls()

    def _announce(self, parameter: Tensor) -> None:
        self._announced[id(parameter)] = self._announced.get(id(parameter), 0) + 1

    def _arrived(self, terms: Mapping[Tensor, Term]) -> None:
        """Take in a layer's terms, of those parameters that are watched."""
        with LOCK:
            under_way = self._current_pass()
            for parameter, term in terms.items():
                if id(parameter) in self._step.ids:
                    under_way.add(parameter, term, is_last=self._announced.get(id(parameter), 0) <= 1)

    def _current_pass(self, *_: Any) -> Pass:
        """The backward pass under way, which may be new."""
        task = torch._C._current_graph_task_id()
        with LOCK:
            if self._pass is None:
                self._pass = Pass(self._step.parameters, task, checking=self._checking)
                with torch.no_grad():
                    self._step.begin(self._pass)
            if self._pass.enter_task(task):
                after_backward(self._guarded(lambda: self._ended(task)))
            return self._pass

    def _ended(self, task: int) -> None:
        """A backward pass is over, or one of a checkpoint inside it."""
        if self._pass is not None and self._pass.task == task:
            assert self._watched is not None
            keeps = self._pass.keeps_graph
            for layer, inputs, g in self._lookups.settle(keeps_graph=keeps):
                with without_autocast(g.device.type):
                    self._arrived(self._watched.formulas[layer](layer, inputs, g))
            ended, self._pass = self._pass, None
            self._announced = self._announced if keeps else {}
            if self._calls.any_waits:
                raise Unsupported("a layer inside an activation checkpoint is not called again in the backward pass")
            with without_autocast(self._step.parameters[0].device.type):  # of terms that were held
                self._step.end(ended)
