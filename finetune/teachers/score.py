"""Write teacher scores into groups: resumable, and paid for once."""

import logging
from dataclasses import asdict
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rerank_plugin.cli.console import bar
from rerank_plugin.io.atomic import writing
from rerank_plugin.io.jsonl import DataPath
from rerank_plugin.io.unfinished import Task, Unfinished
from rerank_plugin.model.source import file_states

from ..data.dataset import GroupDataset
from ..data.groups import Group
from ..data.index_cache import cache_folder
from ..data.writer import group_line
from .candidates import relabelled, thinned, with_scores
from .endpoint import Cost, EndpointTeacher
from .formats import is_endpoint
from .options import ScoreGroupsOptions
from .raw_scores import Average, RawScores
from .result import ScoringResult
from .teacher import LocalTeacher, Teacher

logger = logging.getLogger(__name__)

#: Options that scores do not depend on: a resumed command may have others.
IRRELEVANT = {
    *("output", "overwrite", "device", "token_budget", "threads", "data_path", "relabel"),
    *("candidates", "api_key_env", "api_key_file", "max_requests", "requests_per_minute"),
    "concurrency",
}


def score_groups(
    *,
    teacher: str | PathLike[str] | list[str],
    data_path: DataPath,
    output: str | PathLike[str],
    overwrite: bool = False,
    relabel: bool = False,
    candidates: int | None = None,
    endpoint_model: str | None = None,
    endpoint_format: str | None = None,
    endpoint_scores: str | None = None,
    api_key_env: str | None = None,
    api_key_file: str | PathLike[str] | None = None,
    max_requests: int | None = None,
    requests_per_minute: float | None = None,
    concurrency: int | None = None,
    max_length: int | None = None,
    long_documents: str = "cut",
    instruction: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    threads: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> ScoringResult:
    """Write the logits of a teacher into groups, as `pos_scores` and `neg_scores`.

        score_groups(teacher="BAAI/bge-reranker-large", data_path="a.jsonl", output="b.jsonl")

    Scores that the groups have already are replaced. An interrupted call resumes if it is repeated:
    what was scored is in `<output>.scores.part`, and no document is sent to an endpoint twice.

    Of several teachers the scores are averaged. Each teacher's are standardised first, over all
    documents of the data, because logits of different models have different scales and the widest
    would decide alone; the average is given back the mean and the standard deviation that the
    teachers have on average.

    Endpoints return probabilities. They are clipped to [1e-6, 1 - 1e-6] and turned into logits,
    as local rerankers have them.

    Args:
        teacher: A reranker as a hub id or a folder, the URL of an HTTP endpoint in Jina's or
            Cohere's format, or a list of them, with at most one endpoint.
        data_path: Groups: `.jsonl` or `.jsonl.gz` files, folders or globs.
        output: The `.jsonl` file to write.
        overwrite: Replace an earlier file.
        relabel: Make the passage that the teacher scores best the only positive of its group. The
            labels are then the teacher's: do not measure the teacher on them.
        candidates: Keep so many passages of a group: the positives, and negatives that are spread
            evenly over the range of the teacher's scores.
        endpoint_model: The model that requests to an endpoint name.
        endpoint_format: `jina` or `cohere`; by default told from the URL.
        endpoint_scores: What an endpoint returns, `probabilities` or `logits`.
        api_key_env: The environment variable that has the API key of an endpoint.
        api_key_file: The file that has the API key of an endpoint.
        max_requests: The number of requests to an endpoint that may be sent, by default 1,000.
        requests_per_minute: The rate limit of an endpoint.
        concurrency: Requests to an endpoint at the same time, by default 4.
        max_length: The maximum length of a pair in tokens, here and below of local rerankers.
        long_documents: How longer documents are scored: `cut` or `windows`.
        instruction: The instruction of groups without one.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: The precision: `auto`, `float32`, `bfloat16`, `float16` or `int8`.
        token_budget: The maximum cost of a batch in tokens.
        threads: The number of threads on a CPU.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with a model.
        progress: Show progress bars on stderr.

    Returns:
        The file, with the numbers of its groups and passages.

    Raises:
        InputError: an option, a file or a model cannot be used, or an endpoint refuses a request.
        EndpointError: an endpoint has failed; the same call resumes.
    """
    # The parameters are the fields of ScoreGroupsOptions, which checks them.
    options = {name: value for name, value in locals().items() if name != "progress"}
    return score(ScoreGroupsOptions(**options), progress=progress)


def score(options: ScoreGroupsOptions, *, progress: bool) -> ScoringResult:
    """Score groups as options say; see `score_groups`."""
    groups = GroupDataset.build(options.data_path, cache_folder(), None, progress=progress)
    output = Path(options.output)
    scores_file = output.with_name(f"{output.name}.scores")
    with Unfinished.open(scores_file, task_of(options, groups), "groups") as unfinished:
        sizes = [len(group.documents) for group in groups]
        raw = RawScores(sizes, len(options.teachers))
        raw.read(unfinished.part)
        resumed = int(np.isfinite(raw.values).sum())
        score_missing(options, groups, raw, unfinished, progress=progress)
        average = Average(raw.values)(raw.values)
        result = write_scored(options, groups, raw, average, resumed)
        unfinished.remove()
    return result


def task_of(options: ScoreGroupsOptions, groups: GroupDataset) -> Task:
    """Return what scores depend on: options, data and the files of models, as JSON values."""
    chosen = {name: value for name, value in asdict(options).items() if name not in IRRELEVANT}
    files = [str(file_states(name)) for name in options.teachers]
    return {**chosen, "data": groups.fingerprint, "files": files}


def score_missing(
    options: ScoreGroupsOptions,
    groups: GroupDataset,
    raw: RawScores,
    unfinished: Unfinished,
    *,
    progress: bool,
) -> None:
    """Let every teacher score the groups that it has not scored."""
    with unfinished.writing() as file:
        for number, name in enumerate(options.teachers):
            missing = raw.missing(number)
            if not missing:
                continue
            teacher = load_teacher(name, options)
            groups.check_instructions(teacher)
            if isinstance(teacher, EndpointTeacher):
                teacher.check_cost(Cost.from_groups(groups[index] for index in missing))
            total = sum(len(groups[index].documents) for index in missing)
            with bar("scoring", "pair", total, shown=progress) as shown:
                record = raw.recorder(number, file, shown.update)
                teacher.score(((index, groups[index]) for index in missing), record)


def load_teacher(name: str, options: ScoreGroupsOptions) -> Teacher:
    """Return a teacher by its name."""
    if is_endpoint(name):
        return EndpointTeacher(name, options)
    return LocalTeacher(options.load_reranker(name))


def write_scored(
    options: ScoreGroupsOptions,
    groups: GroupDataset,
    raw: RawScores,
    average: npt.NDArray[np.float64],
    resumed: int,
) -> ScoringResult:
    """Write the groups with their scores."""
    passages = first = 0
    output = Path(options.output)
    with writing(output) as file:
        for index, group in enumerate(groups):
            scored = with_scores(group, raw.of_group(average, index))
            first += is_first(scored)
            scored = relabelled(scored) if options.relabel else scored
            scored = thinned(scored, options.candidates) if options.candidates else scored
            passages += len(scored.documents)
            file.write(group_line(scored))
    return ScoringResult(output, len(groups), passages, raw.values.size, resumed, first)


def is_first(group: Group) -> bool:
    """Return whether the teacher scores a positive above all negatives."""
    assert group.pos_scores is not None and group.neg_scores is not None
    return max(group.pos_scores) > max(group.neg_scores)
