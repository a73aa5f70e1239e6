"""Mining from start to end: groups from a corpus, queries, and judgements or answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rerank_plugin.cli.console import bar
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.io.outputs import scratch_folder

from ..data.batched import batched
from ..data.beir_files import (
    Record,
    check_instructions,
    check_match,
    no_match,
    positives_by_query,
    read_queries,
)
from ..data.corpus import Corpus
from ..data.groups import NO_GRADES, Group
from ..data.writer import group_writer, split_sides
from .answers import Answers, bm25_hits
from .bm25 import Bm25
from .candidates import CandidateSearch, IndexSearch, Run, RunSearch, unlabelled_targets
from .negatives import NegativeSelection, select, with_retrieval_scores
from .options import MineOptions
from .queries import QUERIES_AT_ONCE, Target, answered_targets, judged_targets, merge_same
from .result import MiningResult
from .retrieval import Hits, Retriever

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from rerank_plugin.reranker import Reranker

#: The grades of the relevant passages of every query id, by their ids.
Judgements = dict[str, dict[str, float]]

Paths = str | PathLike[str] | list[str]


def mine_negatives(
    *,
    corpus: Paths,
    queries: Paths,
    output: str | PathLike[str],
    qrels: Paths | None = None,
    run: Paths | None = None,
    unlabelled: bool = False,
    overwrite: bool = False,
    negatives: int = 15,
    retrieval: str | None = None,
    embedding_model: str | PathLike[str] | None = None,
    range_min: int = 0,
    range_max: int = 100,
    relative_margin: float | None = None,
    sampling_strategy: str = "top",
    filter_model: str | PathLike[str] | None = None,
    filter_margin: float | None = None,
    split: str | None = None,
    seed: int = 42,
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
) -> MiningResult:
    """Make training groups: positives from judgements or answers, negatives by retrieval.

    A negative is never a positive of its query, a copy or near-duplicate of one, the query itself,
    or a passage that contains an answer of the query. The same arguments give the same files.

    Groups keep the retrieval scores of their passages, by which `fuse` and training runs learn how
    much the retriever counts; of two retrievers those of their fusion by reciprocal rank. With
    `range_min` or `relative_margin` they do not: without its best candidates a retriever would
    look better than it is.

    Args:
        corpus: Passages: `.jsonl` with `id` (or `_id`), `text` and perhaps `title`, or `.tsv` with
            an id and a text a line. A file, a folder or a glob, or several.
        queries: Queries: `.jsonl` with `id` and `text`, or `.tsv`; without `qrels` with `query` and
            `answer`: the positive is the passage that contains the answer and that BM25 ranks best.
        output: The `.jsonl` file of the groups.
        qrels: Judgements: query id, passage id and grade a line; a grade above 0 is a positive.
            Groups keep the grades as `pos_labels`.
        run: Candidates from another search engine, as a TREC run: lines of
            `query Q0 passage rank score tag`, ranked by score. Nothing is indexed, and passages
            that are neither in it nor judged are not used. Without `qrels` the positive is the
            passage that contains the answer and that the run ranks best.
        unlabelled: Make groups of queries without judgements and answers. The retriever's best
            candidate takes the place of the positive, until `score_groups` with `relabel` replaces
            it: the groups are not for training or evaluation as they are.
        overwrite: Replace earlier groups.
        negatives: How many negatives a group has at most.
        retrieval: How candidates are found without a `run`: `bm25`, `dense` or `both`; by default
            `bm25`, or `both` with an `embedding_model`.
        embedding_model: A sentence-transformers folder or hub id, for dense retrieval.
        range_min: The rank of the first candidate, from 0, positives not counted.
        range_max: The rank after the last candidate.
        relative_margin: Take only candidates that score below the best positive by this share.
        sampling_strategy: `top` for the best candidates, `random` for random ones of the range.
        filter_model: A reranker, as a folder or hub id. Candidates that it scores as high as the
            best positive are dropped; its logits become `pos_scores` and `neg_scores`.
        filter_margin: How far below the best positive it must score a negative, in logits.
        split: Shares of the queries for train, dev and test, as `"0.8,0.1,0.1"`. Beside
            `train.jsonl` the others are `dev.jsonl` and `test.jsonl`.
        seed: The seed of the split and of every draw.
        max_length: The longest pair that `filter_model` reads, in tokens.
        long_documents: How `filter_model` reads longer documents: `cut` or `windows`.
        instruction: The instruction of `filter_model` for queries without one.
        device: The device of both models: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: The precision of `filter_model`: `auto`, `float32`, `bfloat16` or `float16`.
        token_budget: The maximum cost of a batch of `filter_model` in tokens.
        threads: The number of threads of `filter_model` on a CPU.
        revision: Branch, tag or commit of `filter_model` on the hub.
        trust_remote_code: Run code that comes with a model.
        progress: Show progress bars on stderr.

    Returns:
        The files with their numbers of groups, and counts of what was left out.

    Raises:
        InputError: an option or an input is invalid, or no query gives a group.
    """
    # The parameters are the fields of MineOptions, which checks them.
    options = {name: value for name, value in locals().items() if name != "progress"}
    return mine(MineOptions(**options), progress=progress)


def mine(options: MineOptions, *, progress: bool) -> MiningResult:
    """Mine and write the groups."""
    result = MiningResult()
    judged, queries = read_inputs(options, result)
    run, queries = read_candidates(options, queries, result)
    # Before the corpus is indexed, so that a misspelt name is an error at once.
    teacher = options.load_reranker(options.filter_model) if options.filter_model else None
    if teacher:
        check_instructions(queries, teacher)
    embedding_model = load_embedding_model(options)
    with TemporaryDirectory(prefix=".mine-", dir=scratch_folder(options.files[0])) as work:
        folder = Path(work)
        corpus = build_corpus(options, folder, judged, queries, run, result, progress=progress)
        if run:
            searches = run_searches(run, corpus, result)
        else:
            searches = index_searches(
                options,
                embedding_model,
                corpus,
                folder,
                answers=judged is None and not options.unlabelled,
                progress=progress,
            )
        if options.unlabelled:
            targets = unlabelled_targets(queries, searches.candidates, corpus, result)
        elif judged is not None:
            assert options.qrels
            targets = judged_targets(queries, judged, corpus, result, options.qrels)
        else:
            targets = answered_targets(queries, searches.answers, corpus, result, progress=progress)
        targets = merge_same(targets, result)
        groups = mined_groups(
            targets, searches.candidates, corpus, teacher, options, result, progress=progress
        )
        write_groups(groups, targets, options, result)
        corpus.close()
    return result


def read_inputs(
    options: MineOptions, result: MiningResult
) -> tuple[Judgements | None, list[Record]]:
    """Return the judgements, where there are some, and the queries."""
    by_id = bool(options.qrels or options.run or options.unlabelled)
    queries = list(read_queries(options.queries, result.queries_left_out, by_id=by_id))
    if options.unlabelled:
        return None, queries
    if not options.qrels:
        without = next((query for query in queries if not query.answers), None)
        if without:
            hint = "add it, or give --qrels or --unlabelled"
            raise without.line.error(f"field 'answer' is missing: {hint}")
        return None, queries
    judged = positives_by_query(options.qrels, result.remarks)
    ids = dict.fromkeys(query.id for query in queries)
    check_match("query", options.qrels, judged, options.queries, ids)
    return judged, queries


def read_candidates(
    options: MineOptions, queries: list[Record], result: MiningResult
) -> tuple[Run | None, list[Record]]:
    """Return the run, where there is one, and the queries that it has."""
    if not options.run:
        return None, queries
    ids = {query.id for query in queries}
    run = Run.read(options.run, options.corpus, options.queries, ids, result.remarks)
    for query in queries:
        if query.id not in run.queries:
            result.queries_left_out.add("queries that the run lacks", repr(query.id))
    return run, [query for query in queries if query.id in run.queries]


def load_embedding_model(options: MineOptions) -> "SentenceTransformer | None":
    """Load the model for dense retrieval, where there is one."""
    if not options.embedding_model:
        return None
    from .dense import load_sentence_transformer

    return load_sentence_transformer(
        options.embedding_model,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )


def build_corpus(
    options: MineOptions,
    folder: Path,
    judged: Judgements | None,
    queries: Sequence[Record],
    run: Run | None,
    result: MiningResult,
    *,
    progress: bool,
) -> Corpus:
    """Write the passages to disk, and check that the judgements are of them."""
    relevant = {passage for passages in (judged or {}).values() for passage in passages}
    wanted = relevant.union((query.id for query in queries), run.documents if run else ())
    with bar("reading", "passage", shown=progress) as shown:
        corpus = Corpus.build(
            options.corpus,
            folder,
            wanted,
            result.remarks,
            shown.update,
            wanted_only=run is not None,
        )
    if judged and options.qrels and relevant.isdisjoint({*corpus.positions, *corpus.blank_ids}):
        name = next(iter(next(iter(judged.values()))))
        raise no_match("passage", options.qrels, name, options.corpus, corpus.first_id)
    result.remarks["blank passages of the corpus"] = corpus.blank
    return corpus


@dataclass(frozen=True)
class Searches:
    """Where candidates, and the passages with the answers of queries, are found."""

    candidates: CandidateSearch
    answers: Callable[[Sequence[Record], Sequence[Answers]], list[Hits]]


def run_searches(run: Run, corpus: Corpus, result: MiningResult) -> Searches:
    """Return searches among the documents of a run."""
    search = RunSearch.from_run(run, corpus, result.passages_left_out)
    return Searches(search, lambda queries, _: [search.hits[query.id] for query in queries])


def index_searches(
    options: MineOptions,
    embedding_model: "SentenceTransformer | None",
    corpus: Corpus,
    folder: Path,
    *,
    answers: bool,
    progress: bool,
) -> Searches:
    """Index the corpus, and return searches in it: for candidates by BM25 first, if at all."""
    retrievers: list[Retriever] = []
    bm25 = None
    if options.retrieval != "dense" or answers:
        with bar("indexing", "passage", len(corpus), shown=progress) as shown:
            bm25 = Bm25(corpus, folder, shown.update)
    if bm25 and options.retrieval != "dense":
        retrievers.append(bm25)
    if embedding_model is not None:
        from .dense import Dense

        with bar("embedding", "passage", len(corpus), shown=progress) as shown:
            retrievers.append(Dense(corpus, folder, embedding_model, shown.update))

    def find(queries: Sequence[Record], answers: Sequence[Answers]) -> list[Hits]:
        assert bm25
        return bm25_hits([query.text for query in queries], answers, bm25)

    return Searches(IndexSearch(retrievers), find)


def mined_groups(
    targets: Sequence[Target],
    search: CandidateSearch,
    corpus: Corpus,
    teacher: "Reranker | None",
    options: MineOptions,
    result: MiningResult,
    *,
    progress: bool,
) -> Iterator[Group]:
    """Yield the groups of all targets, in their order."""
    few = f"groups of fewer than {options.negatives} negatives"
    with bar("mining", "query", len(targets), shown=progress) as shown:
        for batch in batched(targets, QUERIES_AT_ONCE):
            selections = select(
                batch,
                search,
                corpus,
                options.window,
                negatives=options.negatives,
                seed=options.seed,
                left_out=result.passages_left_out,
            )
            result.remarks[NO_GRADES] += sum(not selection.has_grades for selection in selections)
            groups = take_groups(selections, teacher, options, result)
            if options.window.is_unbiased:
                groups = with_retrieval_scores(groups, selections)
            for group, selection in zip(groups, selections, strict=True):
                drawn = len(selection.drawn.intersection(group.neg))
                result.remarks["negatives drawn at random, where candidates ran out"] += drawn
                if not group.neg:
                    result.queries_left_out["queries for which no negative is left"] += 1
                    continue
                result.remarks[few] += len(group.neg) < options.negatives
                yield group
            shown.update(len(batch))


def take_groups(
    selections: Sequence[NegativeSelection],
    teacher: "Reranker | None",
    options: MineOptions,
    result: MiningResult,
) -> list[Group]:
    """Return the groups of some selections, filtered by the teacher where there is one."""
    if teacher is None:
        return [selection.take(options.negatives) for selection in selections]
    from .false_negatives import take_scored

    return take_scored(
        selections,
        options.negatives,
        teacher,
        margin=options.filter_margin or 0.0,
        left_out=result.passages_left_out,
    )


def write_groups(
    groups: Iterator[Group], targets: Sequence[Target], options: MineOptions, result: MiningResult
) -> None:
    """Write each group into the file of its query's share.

    Raises:
        InputError: there is no group at all, or none for one of the files.
    """
    if not targets:
        raise no_group(options, result)
    sides = split_sides([target.query for target in targets], options.shares, options.seed)
    with group_writer(options.files, sides) as writer:
        for group in groups:
            writer.write(group)
        if not sum(writer.counts):
            raise no_group(options, result)
        result.files = dict(zip(options.files, writer.counts, strict=True))
        for file, count in result.files.items():
            if not count:
                problem = f"no group is left for {file.name}: choose other shares"
                raise OptionError("split", problem)


def no_group(options: MineOptions, result: MiningResult) -> InputError:
    """Return the error of data without a group."""
    return InputError(f"{options.queries}: no query gives a group ({result.reasons()})")
