"""Finds the layers of a model that can be measured in the training step, or the reason why one cannot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import jit, nn

from ..model import is_compiled
from .attention import why_no_projections
from .formulas import formula_of, why_no_formula
from .leaf import by_differentiating, why_not_differentiated

NOT_CALLED = (
    "its layers are not called one by one in the loop's step, as in compiled code, or they leave no gradient, as where "
    "the optimizer steps within the backward pass"
)
NOT_ZEROED = (
    "gradients are there when a step's first backward pass begins, as where zero_grad() is missing or .grad is assigned"
)
ONE_ROW = (
    "its layers see one row of the batch's {} samples, as where these are packed into one sequence, or where what is "
    "trained is looked up once for all of them, as in prompt tuning"
)
PACKED = (
    "the batch has one row of its {} samples, which shows no noise, as where collate_fn packs them into one sequence. "
    "Let the dataset pack them into rows, of which a batch has several, or let collate_fn pad them"
)
COUNTED_TWICE = (
    ", so examples are counted several times. Where these are several losses of a batch, add them up, and call "
    "backward() once"
)


class State(NamedTuple):
    """The facts about a model on which its gradients depend: trainable parameters, modes and hooks.

    Attributes:
        trainable: ids of the trainable parameters.
        hooks: number of hooks on each trainable parameter.
        modules: id, mode and numbers of hooks of each module.
    """

    trainable: list[int]
    hooks: list[int]
    modules: list[int]

    def change_of_parameters(self, model: nn.Module) -> str | None:
        """The change of a model's parameters since this state, in words; None if there is none."""
        trainable = [p for p in walk(model)[1] if p.requires_grad]
        if self.trainable != list(map(id, trainable)):
            return "parameters were frozen, unfrozen or replaced"
        hooks = [len(p._backward_hooks) if p._backward_hooks else 0 for p in trainable]
        return "a parameter was given a hook" if self.hooks != hooks else None


def state_of(model: nn.Module) -> State:
    """The present state of a model."""
    modules, parameters = walk(model)
    trainable = [p for p in parameters if p.requires_grad]
    flags: list[int] = []
    for m in modules:
        flags += id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)
    hooks = [len(p._backward_hooks) if p._backward_hooks else 0 for p in trainable]
    return State(list(map(id, trainable)), hooks, flags)


class Watched:
    """The trained parameters of a model and the layers that own them, as of one state of the model.

    Args:
        model: the model.
        stepped: the parameters that the optimizer steps. If none of them is the model's, all trainable ones count.

    Attributes:
        state: the model's state when this was made. In another state it has to be made again.
        key: hash of the state.
        parameters: the watched parameters.
        layers: the watched parameters that each layer owns.
        formulas: the formula of each layer.
        why_not: the reason why the model cannot be measured in its step; None if it can.
    """

    def __init__(self, model: nn.Module, stepped: Iterable[nn.Parameter]) -> None:
        self.state = state_of(model)
        self.key = hash(tuple(map(tuple, self.state)))
        wanted = {id(p) for p in stepped}
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.parameters = [p for p in trainable if id(p) in wanted] or trainable
        self.layers = {layer: own for _, layer, own in owned(model, self.parameters)}
        self.formulas = {layer: formula_of(layer) or by_differentiating for layer in self.layers}
        self.why_not = why_not_in_step(model, self.parameters)


def walk(model: nn.Module) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """All modules and parameters of a model, each once, in some order.

    `model.modules()` and `model.parameters()` also make names, which takes as long as the norms of a small layer.
    """
    modules: dict[nn.Module, None] = {model: None}
    parameters: dict[int, Any] = {}  # None too, which layers without a bias have in its place
    todo = [model]
    for module in todo:  # which grows meanwhile
        if module._parameters:
            own = module._parameters.values()
            parameters.update(zip(map(id, own), own, strict=True))
        if module._modules:
            new = {child: None for child in module._modules.values() if child is not None and child not in modules}
            modules.update(new)
            todo += new
    parameters.pop(id(None), None)
    return list(modules), list(parameters.values())


def owned(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[tuple[str, nn.Module, list[nn.Parameter]]]:
    """The name of each layer that owns some of these parameters, the layer, and those parameters.

    An attention layer owns the parameters of its projections. A BatchNorm is yielded even if it owns no parameter,
    because it ties examples together all the same.
    """
    wanted = {id(p) for p in parameters}
    inside = {m.out_proj for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    leaves = [m for m in model.modules() if next(m.children(), None) is None]
    in_leaves = {id(p) for leaf in leaves for p in leaf.parameters()}
    for name, module in model.named_modules():
        all_of_it = isinstance(module, nn.MultiheadAttention)
        own = [p for p in module.parameters(recurse=all_of_it) if id(p) in wanted]
        if not all_of_it and next(module.children(), None) is not None:  # such as a head that holds its child's bias
            own = [p for p in own if id(p) not in in_leaves]
        if module not in inside and (own or isinstance(module, nn.modules.batchnorm._BatchNorm)):
            yield _called(name, module), module, own


def why_not_in_step(model: nn.Module, parameters: Iterable[nn.Parameter] | None = None) -> str | None:
    """The reason why a model cannot be measured in the step that trains, naming the layer; None if it can.

    Args:
        model: the model.
        parameters: the parameters to measure. None: all that are trainable.
    """
    if isinstance(model, nn.DataParallel):
        return "DataParallel runs copies of its layers"
    for name, module in model.named_modules():
        if is_compiled(module):
            return f"{_called(name, module)} is compiled, so its layers are not called one by one"
        if isinstance(module, jit.ScriptModule):
            return f"{_called(name, module)} is TorchScript, so its layers are not called one by one"
    wanted = [p for p in model.parameters() if p.requires_grad] if parameters is None else list(parameters)
    for name, layer, own in owned(model, wanted):
        why = why_no_terms(layer) if own else None
        if why is not None:
            return f"{name}: {why}"
    return None


def why_loss_is_needed(model: nn.Module, parameters: Sequence[nn.Parameter], *, choice: str, views: bool) -> str | None:
    """The reason why measuring a model needs its loss; None if it is measured in the step that trains."""
    if views:
        return "metric= and by_group= are measured by halves of a batch"
    if choice == "halves":
        return "source='halves' measures in a pass of its own"
    wanted = {id(p) for p in parameters}
    watched = [p for p in model.parameters() if p.requires_grad and id(p) in wanted]
    return why_not_in_step(model, watched or None)


def why_no_terms(layer: nn.Module) -> str | None:
    """The reason why a layer's terms cannot be computed; None if they can."""
    if isinstance(layer, nn.MultiheadAttention):
        return why_no_projections(layer)
    if formula_of(layer) is None:
        return why_not_differentiated(layer)
    return why_no_formula(layer)


def _called(name: str, module: nn.Module) -> str:
    return f"{type(module).__name__} {name!r}" if name else f"the model, a {type(module).__name__},"
