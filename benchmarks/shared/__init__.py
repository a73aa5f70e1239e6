"""The shared parts of the benchmarks: machine, models, texts, processes, results."""
