"""How optimizers use their hyperparameters, as far as that decides how these change with the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class OptimizerTraits:
    """How an optimizer uses its hyperparameters, as far as that decides how they change with the batch.

    Attributes:
        first: True if beta1 (fastai: mom; Muon: momentum) is the decay of an average of the gradient that is then
            brought to a size of its own, as Adam's is.
        second: True if beta2 (alpha, sqr_mom) is the decay of an average of the squared gradient, or of the momentum of
            Lion.
        eps: True if eps is added to the size of a gradient.
        debiases_first, debiases_second: True if that average is divided by 1 - beta^step.
        decoupled: True if the step multiplies the weights by 1 - lr wd. A group's own setting takes precedence.
        adaptive: True if the step is divided by the gradient's own size, as in Adam and not in SGD.
        compiled: True if the class makes a tensor of its learning rate, as one does whose step is compiled (torchao's).
            Every other number is then a constant of the code, and each new value is compiled anew.
        known: True if the traits were looked up or found out. Otherwise batch and hyperparameters are held, unless the
            user says what follows.
    """

    first: bool = False
    second: bool = False
    eps: bool = False
    debiases_first: bool = False
    debiases_second: bool = False
    decoupled: bool = False
    adaptive: bool = True
    compiled: bool = False
    known: bool = True

    @property
    def debiases(self) -> bool:
        """True if a change of the betas needs `bias_correction`."""
        return self.debiases_first or self.debiases_second


# SGD, and optimizers whose other hyperparameters mean the same at any batch, or are not known to transfer.
LR_ONLY = OptimizerTraits()
ADAM = OptimizerTraits(first=True, second=True, eps=True, debiases_first=True, debiases_second=True)
# NAdam divides its first average by the product of the decays that it really used, so it needs no correction.
NADAM = replace(ADAM, debiases_first=False)
# RAdam reads 2/(1 - beta2) as a number of steps, and below 5 it stops dividing by the gradient's size. At beta2^k it
# would turn into SGD with momentum, at Adam's learning rate.
RADAM = replace(ADAM, second=False, debiases_second=False)
# Adamax keeps a maximum in place of the second average. A maximum has no bias to correct.
ADAMAX = replace(ADAM, debiases_second=False)
# LAMB divides its step by the step's own size, which cancels any error of the bias correction.
LAMB = replace(ADAM, debiases_first=False, debiases_second=False)
RMSPROP = OptimizerTraits(second=True, eps=True)
# Muon brings its average of the gradient to a size of its own, whatever that of the gradient.
MUON = OptimizerTraits(first=True, decoupled=True)
# If the user says that they follow, betas, eps and the rest are taken for what they are in Adam.
UNKNOWN = OptimizerTraits(first=True, second=True, eps=True, known=False)
