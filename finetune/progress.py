"""Bars on stderr."""

from typing import Any

from tqdm import tqdm


def bar(title: str, unit: str, total: int | None = None) -> "tqdm[Any]":
    """A bar on stderr."""
    return tqdm(total=total, desc=title, unit=unit, dynamic_ncols=True)
