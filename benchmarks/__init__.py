"""Benchmarks: each file answers one question and is a command; `README.md` lists them. What they share lies in
`parts/`, the pieces of the comparison of methods in `comparison/`, rows in `results/`."""
