"""Reasons to hold the batch, and warnings, about the length of a run."""

from __future__ import annotations

LENGTH = "length of the run not known"  # reason to hold the batch
BY_COUNT = "the loop counts the batches of an epoch"  # the same
NO_LENGTH = (
    "the length of the run is not known: decisions are paced by the epoch. Give epochs=, a scheduler with total_steps "
    "or T_max, or loop over loader.epochs(n)."
)
ENDLESS = (
    "the sampler draws %d samples an epoch from a dataset of %d, so the loop ends long before the epoch does. How long "
    "the run is cannot be known from that, and the batch hardly grows. Give the sampler the run's own "
    "num_samples=steps * batch_size, give epochs=1, and end the loop with the epoch or when loader.progress is 1."
)
COUNTED = (
    "the loop counts %d batches to an epoch by itself, as ignite's Engine does, although larger batches make an epoch "
    "of fewer. Its epochs take more samples than planned, so the batch is held. The scheduler makes a step at each of "
    "its calls from here on. Let an epoch end where `for batch in loader` ends (docs/your_loop.md says what to write "
    "for ignite)."
)
OTHER_LENGTH = (
    "an epoch has %d samples now, where %d were planned, as by a dataset or a sampler that changes between epochs: "
    "from here on an epoch is a pass over all of them, and the run has the epochs that were asked for. loader.progress "
    "still goes by the plan. To plan by the new length, build a loader for each."
)
STEPPED_BY_THE_EPOCH = (
    "the scheduler's %s is a whole number of epochs' batches, but it is stepped once an epoch: the run is taken to "
    "have %d epochs. Give epochs= if it has another number of them."
)
SHORTER_THAN_ITS_CYCLE = (
    "the scheduler's %s is no whole number of epochs, and it is stepped from batch to batch: it may be the length of "
    "the run or of one of several cycles. By larger batches a loop that ends after so many of them would come to the "
    "second of cycles that it was not to have, so the batch is held. Give epochs= where they are cycles. Else let "
    "T_max be len(loader) * n, and loop over loader.epochs(n) or until loader.progress is 1."
)
NEVER_STEPPED = (
    "the scheduler that the loader was given has not been stepped in a whole epoch, so it is not clear whether its %s "
    "counts batches or epochs. The batch is held until its step() is called. Give epochs= if it is not to be called."
)
GOES_ON_AS_SAID = (
    "the run goes on after the %g epochs that it was said to have, at the batch and the schedule that it has come to. "
    "A loop that ends after a number of batches comes here by larger ones: let it end when loader.progress is 1. "
    "Another run, as of a new model, needs a loader of its own."
)
GOES_ON = (
    "the run goes on after the %s epochs that the scheduler's %s stands for: its length is not known from here on, and "
    "decisions are paced by the epoch. Give epochs= to say how long it is. A loop that ends after a number of batches "
    "comes here by larger ones: let it end when loader.progress is 1. Another run, as of a new model, needs a loader "
    "of its own."
)
