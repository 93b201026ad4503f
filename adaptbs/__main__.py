"""`python -m adaptbs`: lists its commands, `demo` and `doctor`, and runs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE = """\
adaptbs: the batch size as something training sets by itself.

  python -m adaptbs demo [--quick] [--out DIR]
      trains one model twice, with a fixed and with an adaptive batch, on the 336,776 flights of 2013

  python -m adaptbs doctor [FILE.py:make_model | export.pkl]
      prints versions and devices, and which layers of a model can be measured in the step that trains;
      it runs the code of the file that it is given

In Python: adaptbs.AdaptiveDataLoader for a loop of your own, adaptbs.fastai.AdaptiveBatchSize for fastai,
adaptbs.bs_find and learn.bs_find() to look before a run."""


def main(argv: Sequence[str]) -> int:
    """Run the named command; return the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] == "demo":
        return _demo(argv[1:])
    if argv[0] == "doctor":
        return _doctor(argv[1:])
    print(f"python -m adaptbs {argv[0]}: there is no such command\n\n{USAGE}", file=sys.stderr)
    return 2


def _demo(arguments: Sequence[str]) -> int:
    try:
        from . import demo
    except ImportError as error:
        print(f'{error}\nThe demo needs fastai and its data: pip install "adaptbs[demo]"', file=sys.stderr)
        return 1
    return demo.main(arguments)


def _doctor(arguments: Sequence[str]) -> int:
    from . import doctor

    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        print(doctor.main(arguments))
    except doctor.NoModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
