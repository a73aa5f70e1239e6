"""Options that benchmarks share: the folders of data sets and of figures, the device."""

import argparse
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

#: Data sets beside the checkout.
DATA = CHECKOUT.parent / "shared" / "data"

SQUAD_OR_SAMPLE = "a folder with the set squad; without it the sample of the package is used"


def add_folders(parser: argparse.ArgumentParser, *, data: str, output: str, name: str = "") -> None:
    """Add `--data` and `--output`.

    Args:
        parser: Gets them.
        data: The help of `--data`.
        output: The help of `--output`.
        name: A folder of the benchmark's own under the default output.
    """
    parser.add_argument("--data", type=Path, default=DATA, help=data)
    parser.add_argument(
        "--output", type=Path, default=CHECKOUT / "build" / "benchmarks" / name, help=output
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where models are; %(default)s"
    )


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add `--jobs`."""
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; %(default)s")
