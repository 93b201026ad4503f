"""A grid of rules for what follows the batch, after Dang, Wen and Malladi 2026 (arXiv:2610.08975).

    python -m benchmarks.quality.transfer_grid [--quick]

`tasks` and `models` hold six small tasks, `optimizers` the four optimizers, `rules` the rules, `runs` one run,
`results` regret and rank. Many runs are made at once, as one stack of small models.
"""
