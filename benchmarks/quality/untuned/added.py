"""Three more tasks for choosing, of the kinds that the first last look found to be worse or did not resolve.

They were written after that look and chose the rule that came after it. Their data are those of other tasks, with
another target, another network or another length.
"""

from __future__ import annotations

from torch.nn import functional as F
from torch.optim import Adam, AdamW, RMSprop

from benchmarks.common.rows import Rows
from benchmarks.quality.untuned import models
from benchmarks.quality.untuned.data import Data, Halves
from benchmarks.quality.untuned.tasks import CHOOSE, UntunedTask, by, held_out, one_cycle

TASKS = ("gru_departments", "mlp_rmsprop", "longer")


def load_tasks(data: Data) -> dict[str, UntunedTask]:
    """All three by name."""
    classes, images = F.cross_entropy, data.images
    words, departments, _ = data.reviews
    reviews = Halves(Rows(words[4000:], departments[4000:]), (words[:4000], departments[:4000]))
    x, y = data.some_images(10_000)
    common = {"adams": None, "watched": False, "use": CHOOSE, "loss_func": classes, "schedule": one_cycle}
    tasks = [
        UntunedTask(
            "gru_departments", 2, make=lambda: models.Recurrent(6), train=reviews.train,
            evaluate=held_out(classes, reviews.held),
            optimizer=by(Adam), candidates=(4e-3, 8e-3, 1.6e-2, 3.2e-2), **common,
        ),
        UntunedTask(
            "mlp_rmsprop", 4, make=lambda: models.image_mlp(196, 128, 10), train=Rows(x, y),
            evaluate=held_out(classes, images.held),
            optimizer=by(RMSprop), candidates=(2e-3, 4e-3, 8e-3, 1.6e-2), **common,
        ),
        UntunedTask(
            "longer", 3, make=lambda: models.image_mlp(196, 128, 10), train=images.train,
            evaluate=held_out(classes, images.held),
            optimizer=by(AdamW, weight_decay=0.05), candidates=(4e-3, 8e-3, 1.6e-2), **common,
        ),
    ]  # fmt: skip
    return {task.name: task for task in tasks}
