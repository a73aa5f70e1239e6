"""Executes the notebooks and renders them as HTML: `make notebooks`.

    python notebooks/run.py            # as a reader would, minutes each on two cores
    python notebooks/run.py --fast     # a few training steps only, to see that everything runs

Cells tagged `install` are left out. Notebooks stay as they are, without outputs; what comes of them
is in `build/notebooks`.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent

#: What `--fast` adds to the parameters: few steps, few questions, and a folder that a full run does
#: not reuse. A notebook without test questions makes them out of its questions.
FAST = """
from itertools import islice
from pathlib import Path

MAX_STEPS, RERANKER = 3, "fast_reranker"
for name, count in {"DEV": 24, "TEST": 12}.items() if "TEST" in globals() else [("QUERIES", 100)]:
    few = Path(f"few_{name.lower()}.jsonl")
    with Path(globals()[name]).open(encoding="utf-8") as lines:
        few.write_text("".join(islice(lines, count)), encoding="utf-8")
    globals()[name] = few
"""


def prepared(path: Path, *, fast: bool) -> NotebookNode:
    """Return a notebook that can be executed anywhere."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
    tagged = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise SystemExit(f"{path.name}: {len(tagged)} cells are tagged parameters, expected one")
    if fast:
        cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(FAST))
    notebook.cells = cells
    return notebook


def execute(path: Path, output: Path, *, fast: bool) -> None:
    """Execute a notebook, and write it as HTML, as far as it came."""
    notebook = prepared(path, fast=fast)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": output}},
        # Of a progress bar what a reader of the notebook sees at the end, not every state.
        coalesce_streams=True,
    )
    try:
        client.execute()
    finally:
        html, _ = HTMLExporter().from_notebook_node(notebook)
        (output / path.with_suffix(".html").name).write_text(html, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks by the start of their names")
    parser.add_argument("--fast", action="store_true", help="a few training steps only")
    parser.add_argument("--output", type=Path, default=FOLDER.parent / "build" / "notebooks")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    # Nothing is looked up, and warnings of several processes stay away.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    failed = 0
    for path in sorted(FOLDER.glob("*.ipynb")):
        if options.names and not path.name.startswith(tuple(options.names)):
            continue
        start = time.perf_counter()
        try:
            execute(path, options.output, fast=options.fast)
            outcome = "passed"
        except CellExecutionError as error:
            outcome, failed = f"failed:\n{error}", failed + 1
        print(f"{path.name}: {outcome} in {time.perf_counter() - start:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
