"""What benchmarks share: options, rows and what they say of the machine, clocks, traffic; and what is measured: shapes
of models, ways to make a step, pictures, networks."""
