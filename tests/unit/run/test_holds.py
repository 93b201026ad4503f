from adaptbs.run import Holds
from adaptbs.types import Decision

GROW = Decision(64, "noise scale")


def test_without_a_reason_a_decision_is_what_it_is():
    assert Holds().apply(GROW, 16) is GROW


def test_the_oldest_reason_holds_until_all_are_gone():
    holds = Holds()
    holds.add("rows"), holds.add("length"), holds.add("rows")
    assert holds.apply(GROW, 16) == Decision(16, "rows")
    holds.remove("rows"), holds.remove("rows")
    assert holds.apply(GROW, 16) == Decision(16, "length")
    holds.remove("length")
    assert holds.reason is None and holds.apply(GROW, 16) is GROW
