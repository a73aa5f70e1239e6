"""Paths as users give them."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder for `~`, or unchanged if there is no such home.

    `Path.expanduser` raises there: in containers a user may have no home, and names can be wrong.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111
