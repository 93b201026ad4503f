import pytest

from adaptbs.__main__ import main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_it_lists_what_it_can_do(arguments, capsys):
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "python -m adaptbs demo" in shown.out and "python -m adaptbs doctor" in shown.out and not shown.err


def test_a_command_that_does_not_exist_is_refused_with_the_list(capsys):
    assert main(["dmeo"]) == 2
    shown = capsys.readouterr()
    assert "dmeo: there is no such command" in shown.err and "python -m adaptbs demo" in shown.err and not shown.out
