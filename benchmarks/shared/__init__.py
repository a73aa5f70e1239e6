"""What several benchmarks use: machine, models, texts, processes, results."""
