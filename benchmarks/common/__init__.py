"""Used by all benchmarks: the machine that a result is from, MNIST, and results as Markdown tables."""
