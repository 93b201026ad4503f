"""Tables of one task's runs by many seeds, where few runs are spoiled: the rule, and what it was."""

from __future__ import annotations

from benchmarks.common.markdown import markdown
from benchmarks.quality.untuned.ablations import OF_ROOT, OF_ROOT_BY_HALF, OF_SGD
from benchmarks.quality.untuned.cells import error, made_by, rows_of, times_faster
from benchmarks.quality.untuned.compared import DEFAULT, pairs

OF_BETA1 = {OF_ROOT.name: "β1^√k", OF_ROOT_BY_HALF.name: "β1^√k, progress counted by half"}


def variants(task: str, part: str, names: dict[str, str]) -> str:
    """The default and others on a task. `names`: what the table calls the others, by the names of their rules."""
    rows, lines = rows_of("fixed", "choosing", part), []
    for rule, name in {DEFAULT: "as it is", **names}.items():
        if found := pairs(task, rule, rows):
            worst = [f"{each:+.0%}" for each in sorted(found.differences)[-3:]]
            lines.append([name, str(len(found.differences)), error(found), ", ".join(worst), times_faster(found.times)])
    return markdown(["rule", "seeds", "error (limit)", "the worst three", "faster"], lines) + made_by(part)


TABLES = {
    "untuned_beta1": lambda: variants("longer", "beta1", OF_BETA1),
    "untuned_sgd_rate": lambda: variants("resnet", "sgd_rate", {rule.name: rule.name for rule in OF_SGD}),
}
