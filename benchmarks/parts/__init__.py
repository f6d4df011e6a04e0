"""What several benchmarks share: rows of results, clocks, shapes of models, ways to make a step, data, networks."""
