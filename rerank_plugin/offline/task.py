"""The task of results: the data, the model and the options that they depend on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rerank_plugin.io.jsonl import fingerprint
from rerank_plugin.io.unfinished import Task
from rerank_plugin.offline.options import RerankOptions

#: The entries of a task that have hashes: of the files of the data, and of those of the model.
DATA, MODEL = "data", "model"


def ranking_task(options: RerankOptions, files: Sequence[Path], **layout: object) -> Task:
    """Return the task of a run, which a run that resumes it must have, too.

    Args:
        options: The options.
        files: The files of the data.
        **layout: How the results are divided among files.

    Raises:
        InputError: a file of the data or of the model cannot be read.
    """
    from rerank_plugin.model.fingerprint import model_fingerprints

    return {
        **options.results_depend_on,
        **layout,
        # Their names may change, but not their order.
        DATA: {f"file {number}": fingerprint(file) for number, file in enumerate(files, 1)},
        MODEL: model_fingerprints(options.model_dir, options.revision),
    }


def changes(known: object, task: Task) -> str:
    """Return how a task differs from a known one in words; "" if it does not."""
    if known == task:
        return ""
    if not isinstance(known, dict) or known.keys() != task.keys():
        return "its record cannot be read"
    options = sorted(
        f"--{name} was {known[name]}, not {task[name]}"
        for name in task.keys() - {DATA, MODEL}
        if known[name] != task[name]
    )
    data, model = (changed_files(name, known[name], task[name]) for name in (DATA, MODEL))
    return "; ".join(filter(None, [*options, data, model]))


def changed_files(what: str, known: Mapping[str, str], hashes: Mapping[str, str]) -> str:
    """Return how files of the data or the model differ from known ones; "" if they do not."""
    names = sorted(name for name in {*known, *hashes} if known.get(name) != hashes.get(name))
    return f"the {what} has changed: {', '.join(names)}" if names else ""
