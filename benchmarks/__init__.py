"""Benchmarks of adaptbs, run with `python -m benchmarks.FOLDER.MODULE` from the repository root."""
