"""The sample data that ships with the package: a help desk's passages and questions."""

from importlib.resources import files
from pathlib import Path


def sample_path(name: str) -> Path:
    """Return the path of a sample file, such as `train.jsonl`."""
    return Path(str(files(__name__) / name))
