"""`python -m adaptbs demo`: compares a fixed batch with an adaptive one on real data."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the named command; return the exit status."""
    if argv and argv[0] == "demo":
        try:
            from . import demo
        except ImportError as error:
            print(f'{error}\nThe demo needs fastai and its data: pip install "adaptbs[demo]"', file=sys.stderr)
            return 1
        return demo.main(argv[1:])
    print("usage: python -m adaptbs demo [--quick] [--out DIR]", file=sys.stderr)
    return 0 if argv in (["-h"], ["--help"]) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
