"""`rerank-plugin mine`: groups out of a corpus, queries, and what is known to be right."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rerank_plugin.cli.console import bar, say, summary_stream
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.io.atomic import is_stream, scratch_place
from rerank_plugin.options import ModelOptions, check_options, option

from ..data.batched import batched
from ..data.beir_files import Record, check_match, no_match, positives_by_query, read_queries
from ..data.corpus import Corpus
from ..data.groups import Group
from ..data.writer import check_files, group_writer, parse_shares, split_files, split_sides
from .bm25 import Bm25
from .negatives import SAMPLING_STRATEGIES, Selection, Window, select
from .queries import QUERIES_AT_ONCE, Target, answered_targets, judged_targets, merge_same
from .retrieval import Retriever
from .summary import Summary

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from rerank_plugin.reranker import Reranker

RETRIEVALS = ("bm25", "dense", "both")


@dataclass(kw_only=True)
class MineOptions(ModelOptions):
    """Make training groups: positives from judgements or answers, negatives by retrieval."""

    corpus: str | list[str] = option(
        help="passages: .jsonl with 'id' (or '_id'), 'text' and perhaps 'title', or .tsv with an "
        "id and a text"
    )
    queries: str | list[str] = option(
        help="queries: .jsonl with 'id' and 'text', or .tsv; without --qrels with 'query' and "
        "'answer', whose passage is looked for in the corpus"
    )
    qrels: str | list[str] | None = option(
        None, help="judgements, a line each: query id, passage id, grade; right is above 0"
    )
    output: str = option(help="where the groups go, a .jsonl file")
    overwrite: bool = option(False, help="replace earlier groups")
    negatives: int = option(15, help="negatives of a group")
    retrieval: str | None = option(
        None,
        choices=RETRIEVALS,
        help="what finds candidates; default: bm25, or both where there is an --embedding_model",
    )
    embedding_model: str | None = option(
        None, help="a sentence-transformers folder or hub id, for dense retrieval"
    )
    range_min: int = option(0, help="how many of the best candidates are passed over")
    range_max: int = option(100, help="how many candidates are looked at")
    relative_margin: float | None = option(
        None,
        help="pass over candidates that do not score below the best positive by this share, "
        "0.05 for 5%; by the dense similarity where there is one",
    )
    sampling_strategy: str = option(
        "top", choices=SAMPLING_STRATEGIES, help="the best candidates, or random ones of the range"
    )
    filter_model: str | None = option(
        None,
        help="a reranker that drops negatives which it finds as good as the positives; its "
        "logits are kept as pos_scores and neg_scores",
    )
    filter_margin: float | None = option(
        None,
        help="how far below the best positive it must score a negative, in logits; "
        "default: 0, only not as high",
    )
    split: str | list[str] | None = option(
        None,
        help="shares of the queries for train, dev and test, as 0.8,0.1,0.1; of train.jsonl the "
        "others are dev.jsonl and test.jsonl beside it",
    )
    seed: int = option(42, help="fixes the split and every draw")

    def __post_init__(self) -> None:
        check_options(self)
        if self.negatives < 1:
            raise OptionError("negatives", f"{self.negatives} is less than 1")
        if self.seed < 0:
            raise OptionError("seed", f"{self.seed} is less than 0")
        if not 0 <= self.range_min < self.range_max:
            problem = f"{self.range_min} is not from 0 to below --range_max {self.range_max}"
            raise OptionError("range_min", problem)
        if self.relative_margin is not None and not 0 <= self.relative_margin < 1:
            raise OptionError("relative_margin", f"{self.relative_margin} is not from 0 to below 1")
        self._check_filter()
        if self.retrieval is None:
            self.retrieval = "both" if self.embedding_model else "bm25"
        if self.retrieval == "bm25" and self.embedding_model:
            raise OptionError("embedding_model", "is not used with --retrieval bm25")
        if self.retrieval != "bm25" and not self.embedding_model:
            raise OptionError("retrieval", f"{self.retrieval} needs an --embedding_model")
        inputs = (self.corpus, self.queries, self.qrels)
        check_files(self.files, inputs, overwrite=self.overwrite)

    def _check_filter(self) -> None:
        for name in ("max_length", "token_budget", "revision", "filter_margin"):
            if getattr(self, name) is not None and not self.filter_model:
                raise OptionError(name, "is for a --filter_model, and there is none")

    @property
    def shares(self) -> list[float]:
        """The shares of the split."""
        return parse_shares(self.split)

    @property
    def files(self) -> list[Path]:
        """Where the groups of every share go."""
        return split_files(Path(self.output), self.shares)

    @property
    def window(self) -> Window:
        """Which candidates may become negatives."""
        return Window(self.range_min, self.range_max, self.relative_margin, self.sampling_strategy)


def main(options: MineOptions) -> int:
    """Mine, write the groups, print the summary."""
    summary = Summary()
    judged, queries = read_inputs(options, summary)
    # Before the corpus is indexed: that takes time, a wrong name none.
    teacher = load_teacher(options) if options.filter_model else None
    embedding_model = load_embedding_model(options) if options.embedding_model else None
    with TemporaryDirectory(prefix=".mine-", dir=scratch_place(options.files[0])) as work:
        folder = Path(work)
        corpus = build_corpus(options, folder, judged, queries, summary)
        summary.notes["blank passages of the corpus"] = corpus.blank
        retrievers, bm25 = build_retrievers(
            options, embedding_model, corpus, folder, answers=judged is None
        )
        if judged is not None:
            assert options.qrels
            targets = judged_targets(queries, judged, corpus, summary, options.qrels)
        else:
            assert bm25
            targets = answered_targets(queries, bm25, corpus, summary)
        targets = merge_same(targets, summary)
        if not targets:
            raise InputError(nothing_left(options, summary))
        sides = split_sides([target.query for target in targets], options.shares, options.seed)
        with group_writer(options.files, sides) as writer:
            for group in mine(targets, retrievers, corpus, teacher, options, summary):
                writer.write(group)
            if not sum(writer.counts):
                raise InputError(nothing_left(options, summary))
            for file, count in zip(options.files, writer.counts, strict=True):
                if not count:
                    problem = f"no group is left for {file.name}: choose other shares"
                    raise OptionError("split", problem)
        corpus.close()
    tell(options.files, writer.counts, summary)
    return 0


def tell(files: Sequence[Path], counts: Sequence[int], summary: Summary) -> None:
    """Print the summary, and what to type next."""
    told = summary_stream(files[0])
    for file, count in zip(files, counts, strict=True):
        told.write(f"{file}: {count} groups\n")
    told.write("\n".join([*summary.lines(), ""]))
    if not is_stream(files[0]):
        check = shlex.join(["rerank-plugin", "check", "--data_path", str(files[0])])
        say(f"next:  {check}")


def read_inputs(
    options: MineOptions, summary: Summary
) -> tuple[dict[str, list[str]] | None, list[Record]]:
    """What is judged relevant for every query, where there are judgements, and the queries."""
    if not options.qrels:
        queries = list(read_queries(options.queries, summary.queries, by_id=False))
        without = next((query for query in queries if not query.answers), None)
        if without:
            raise without.line.error("the query has no 'answer': give --qrels, or add one")
        return None, queries
    judged = positives_by_query(options.qrels, summary.notes)
    queries = list(read_queries(options.queries, summary.queries))
    check_match(
        "query",
        options.qrels,
        judged,
        options.queries,
        dict.fromkeys(query.id for query in queries),
    )
    return judged, queries


def build_corpus(
    options: MineOptions,
    folder: Path,
    judged: dict[str, list[str]] | None,
    queries: Sequence[Record],
    summary: Summary,
) -> Corpus:
    """The passages on disk."""
    relevant = {passage for passages in (judged or {}).values() for passage in passages}
    wanted = relevant.union(query.id for query in queries)
    with bar("reading", "passage") as progress:
        corpus = Corpus.build(options.corpus, folder, wanted, summary.notes, progress.update)
    if judged and options.qrels and relevant.isdisjoint({*corpus.positions, *corpus.blank_ids}):
        name = next(iter(judged.values()))[0]
        raise no_match("passage", options.qrels, name, options.corpus, corpus.first_id)
    return corpus


def nothing_left(options: MineOptions, summary: Summary) -> str:
    """Why there is no group, in one line."""
    reasons = [*summary.queries.lines(), *summary.dropped.lines(), *summary.notes.lines()]
    return f"{options.queries}: no query gives a group ({'; '.join(reasons)})"


def load_embedding_model(options: MineOptions) -> "SentenceTransformer":
    """The model for dense retrieval."""
    from .dense import load

    model = str(options.embedding_model)
    return load(model, device=options.device, trust_remote_code=options.trust_remote_code)


def build_retrievers(
    options: MineOptions,
    embedding_model: "SentenceTransformer | None",
    corpus: Corpus,
    folder: Path,
    *,
    answers: bool,
) -> tuple[list[Retriever], Bm25 | None]:
    """What finds candidates, BM25 first; and BM25 also where it only finds answers."""
    bm25 = None
    retrievers: list[Retriever] = []
    if options.retrieval != "dense" or answers:
        with bar("indexing", "passage", len(corpus)) as progress:
            bm25 = Bm25(corpus, folder, progress.update)
    if bm25 and options.retrieval != "dense":
        retrievers.append(bm25)
    if embedding_model is not None:
        from .dense import Dense

        with bar("embedding", "passage", len(corpus)) as progress:
            retrievers.append(Dense(corpus, folder, embedding_model, progress.update))
    return retrievers, bm25


def mine(
    targets: Sequence[Target],
    retrievers: Sequence[Retriever],
    corpus: Corpus,
    teacher: "Reranker | None",
    options: MineOptions,
    summary: Summary,
) -> Iterator[Group]:
    """The groups of all targets, in their order."""
    with bar("mining", "query", len(targets)) as progress:
        for batch in batched(targets, QUERIES_AT_ONCE):
            selections = select(
                batch,
                retrievers,
                corpus,
                options.window,
                negatives=options.negatives,
                seed=options.seed,
                dropped=summary.dropped,
            )
            groups = take_groups(selections, teacher, options, summary)
            for group, selection in zip(groups, selections, strict=True):
                drawn = len(selection.drawn.intersection(group.neg))
                summary.notes["negatives drawn at random, where candidates ran out"] += drawn
                if not group.neg:
                    summary.queries["queries for which no negative is left"] += 1
                    continue
                short = len(group.neg) < options.negatives
                summary.notes[f"groups of fewer than {options.negatives} negatives"] += short
                yield group
            progress.update(len(batch))


def load_teacher(options: MineOptions) -> "Reranker":
    """The reranker that filters."""
    return options.load_reranker(str(options.filter_model))


def take_groups(
    selections: Sequence[Selection],
    teacher: "Reranker | None",
    options: MineOptions,
    summary: Summary,
) -> list[Group]:
    """The groups of some selections, filtered by the teacher where there is one."""
    if teacher is None:
        return [selection.take(options.negatives) for selection in selections]
    from .false_negatives import take_scored

    return take_scored(
        selections,
        options.negatives,
        teacher,
        margin=options.filter_margin or 0.0,
        dropped=summary.dropped,
    )
