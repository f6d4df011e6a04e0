"""The comparison of methods on the same data, tuned alike: what is compared on what, which runs there are, one run,
all runs, tables. Its questions are `vision.py` and `released.py`."""
