"""Benchmarks: `sharp-unlearn benchmark`, or `python benchmarks/step.py` in a checkout. Rows lie in `results/`."""
