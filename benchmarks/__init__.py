"""Our kernels side by side with their peers. See `python -m benchmarks --help`."""
