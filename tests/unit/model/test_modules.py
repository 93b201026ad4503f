import pytest
from torch import nn

from adaptbs.model.modules import DEEP, Seldom


@pytest.mark.parametrize(("modules", "asked"), [(10, 20), (DEEP + 10, 5)])
def test_a_deep_model_is_gone_over_ever_more_seldom(modules, asked):
    model, looks = nn.Sequential(*(nn.Identity() for _ in range(modules))), []
    fact = Seldom(model, lambda: looks.append(1) or len(looks))
    found = [fact() for _ in range(20)]
    assert len(looks) == asked  # of the deep one at calls 1, 2, 4, 8 and 16
    assert found == sorted(found) and found[:2] == [1, 2] and found[-1] == asked


def test_what_it_depends_on_is_followed_at_once():
    model, held = nn.Sequential(*(nn.Identity() for _ in range(DEEP + 10))), ["first"]
    fact = Seldom(model, lambda: list(held), key=lambda: len(held))
    assert [fact(), fact(), fact()] == [["first"]] * 3
    held.append("added")
    assert fact() == fact() == ["first", "added"]
