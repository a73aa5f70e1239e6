"""Kernels for scoring and attention on a CPU, some of them compiled."""
