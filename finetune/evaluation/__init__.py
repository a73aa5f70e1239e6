"""Measure rankings: metrics, calibration, runs of retrievers."""
