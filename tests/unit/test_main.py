import pytest

from adaptbs.__main__ import main


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["dmeo"], 2), (["--help"], 0), (["-h"], 0)])
def test_usage(arguments, status, capsys):
    assert main(arguments) == status
    assert "python -m adaptbs demo" in capsys.readouterr().err
