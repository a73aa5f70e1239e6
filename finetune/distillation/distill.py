"""`distill`: a teacher's scores, then a training run on them."""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.io.atomic import write_json

from ..data.dataset import GroupDataset
from ..data.index_cache import cache_folder
from ..export.target import check_target
from ..losses import make_loss
from ..teachers.options import ScoreGroupsOptions
from ..teachers.score import score, task_of
from ..training.finetune import FinetuneResult, finetune
from ..training.model import load_base_model
from .options import SCORED, DistillConfig

logger = logging.getLogger(__name__)


def distill(config: DistillConfig, *, progress: bool = False) -> FinetuneResult:
    """Score all groups with a teacher, and fine-tune a student on the scores.

        distill(DistillConfig(teacher="BAAI/bge-reranker-large", model_name_or_path="small",
                              data_path="train.jsonl", finetune_model_dir="student"))

    The scored groups are kept in `<finetune_model_dir>.scores`; the same call resumes both scoring
    and training, and a run with other training options takes the scores that are there. Before the
    first step the teacher is compared with the student on the validation queries, by nDCG@10: a
    teacher that is not better beyond chance is a warning.

    Args:
        config: The options of `finetune`, and those of the teacher. The loss is `kl_divergence` by
            default.
        progress: Show progress bars of scoring on stderr.

    Raises:
        InputError: as `score_groups` and `finetune`.
        EndpointError: an endpoint has failed; the same call resumes.
    """
    check_before_scoring(config)
    for name in SCORED:
        if getattr(config, name):
            score_once(config.scoring(name), progress=progress)
    return finetune(config.training())


def check_before_scoring(config: DistillConfig) -> None:
    """Check what would fail after the scores are paid for.

    Raises:
        InputError: the loss, the folder or the student cannot be used.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("distill is one process: use score, and train on its output in several")
    if not make_loss(str(config.loss)).needs_teacher:
        raise OptionError("loss", f"{config.loss} does not use the scores of a teacher")
    check_target(Path(config.finetune_model_dir), overwrite=config.overwrite)
    load_base_model(config, structure_only=True)


def score_once(options: ScoreGroupsOptions, *, progress: bool) -> None:
    """Score groups, unless an earlier call has done so.

    Raises:
        OptionError: there are scores of other data or of another teacher.
    """
    output = Path(options.output)
    task_file = output.with_suffix(".task.json")
    groups = GroupDataset.build(options.data_path, cache_folder(), None, progress=progress)
    task = {
        **task_of(options, groups),
        "relabel": options.relabel,
        "candidates": options.candidates,
    }
    if output.exists():
        known = None
        with suppress(OSError, ValueError):
            known = json.loads(task_file.read_text(encoding="utf-8"))
        if known != task:
            problem = f"{output} has scores of other data or another teacher: remove it"
            raise OptionError("scores_dir", f"{problem}, or choose another folder")
        logger.info("%s: scored before", output)
        return
    write_json(task_file, task)
    score(options, progress=progress)
