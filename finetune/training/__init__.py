"""Train a model: the run and its steps."""
