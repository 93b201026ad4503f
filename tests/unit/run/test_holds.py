from adaptbs.run.holds import FIRST_STEPS, Holds
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


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_warnings_of_the_first_steps_are_one(caplog):
    holds = Holds(batches_per_step=2)
    holds.warn("a %s of %d", "doubt", 1)
    holds.doubt("reason", "100 % certain")
    holds.warn("a %s of %d", "doubt", 1)
    for _ in range(2 * FIRST_STEPS):
        holds.count_batch()
    assert not messages(caplog) and holds.gathers and holds.reason == "reason"
    holds.count_batch()
    (said,) = messages(caplog)
    assert said.startswith("2 things") and said.endswith("\n- a doubt of 1\n- 100 % certain") and not holds.gathers


def test_one_alone_is_said_as_it_is_and_later_ones_at_once(caplog):
    holds = Holds()
    holds.warn("a doubt of %d %%", 1)
    holds.say()
    assert messages(caplog) == ["a doubt of 1 %"]
    holds.warn("another")
    holds.say()
    assert messages(caplog) == ["a doubt of 1 %", "another"]
