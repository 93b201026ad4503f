from types import SimpleNamespace

import pytest

from adaptbs.loader.looks import Looks
from adaptbs.run import Holds


def looks(*, ever_trained: bool, asked: int | None = None) -> Looks:
    controller = SimpleNamespace(holds=Holds(), rules=SimpleNamespace(may_change=True))
    made = Looks(SimpleNamespace(controller=controller))
    made.load_state_dict({"ever_trained": ever_trained})
    if asked is not None:
        made.asks_for(asked)
    return made


@pytest.mark.parametrize(
    ("trained", "at_its_end", "ever_trained", "asked", "is_a_look"),
    [
        (True, False, False, None, False),
        (False, False, True, None, True),  # next(iter(loader))
        (False, True, False, None, False),  # something is collected before training
        (False, True, True, None, True),
        (False, True, True, 3, False),  # another model has its turn in the epoch that the loop asked for
        (False, True, True, 2, True),
    ],
)
def test_an_iteration_is_an_epoch_or_a_look(trained, at_its_end, ever_trained, asked, is_a_look):
    assert looks(ever_trained=ever_trained, asked=asked).is_a_look(3, at_its_end, trained) == is_a_look


def test_a_whole_pass_without_training_after_one_with_it_is_warned_of_once(caplog):
    made = looks(ever_trained=False)
    made._run.controller.holds.say()  # from here on warnings are logged at once
    made.ended(False, is_whole=True, counts=True)
    made.ended(True, is_whole=True, counts=True)
    made.ended(False, is_whole=False, counts=False)
    assert not caplog.text
    for _ in range(2):
        made.ended(False, is_whole=True, counts=False)
    assert caplog.text.count("is no part of the run") == len(caplog.records) == 1
