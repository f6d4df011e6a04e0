"""The pieces of `vision.py`: setups, configurations with their grids, one run, tables and plot, and the released code's
semantics."""
