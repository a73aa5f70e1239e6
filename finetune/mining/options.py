"""Options of mining, validated together for Python and the command line."""

from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.options import ModelOptions, check_options, option

from ..data.writer import check_files, parse_shares, split_files
from .negatives import SAMPLING_STRATEGIES, Window

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
        "'answer': the positive is the passage that contains the answer"
    )
    qrels: str | list[str] | None = option(
        None, help="judgements, one a line: query id, passage id and grade; above 0 is a positive"
    )
    run: str | list[str] | None = option(
        None,
        help="candidates from another search engine: a TREC run with query id, Q0, passage id, "
        "rank, score and tag a line; passages that are neither in it nor judged are not used",
    )
    unlabelled: bool = option(
        False,
        help="make groups of queries without judgements and answers: the best candidate of the "
        "retriever takes the place of the positive until score --relabel replaces it",
    )
    output: str = option(help="the .jsonl file of the groups")
    overwrite: bool = option(False, help="replace earlier groups")
    negatives: int = option(
        15, aliases=("num_negatives",), minimum=1, help="the maximum number of negatives in a group"
    )
    retrieval: str | None = option(
        None,
        choices=RETRIEVALS,
        help="how candidates are found without a --run; default: bm25, or both with an "
        "--embedding_model",
    )
    embedding_model: str | None = option(
        None, help="a sentence-transformers folder or hub id, for dense retrieval"
    )
    range_min: int = option(0, minimum=0, help="the rank of the first candidate, from 0")
    range_max: int = option(100, help="the rank after the last candidate")
    relative_margin: float | None = option(
        None,
        help="take only candidates that score below the best positive by this share, 0.05 for 5%; "
        "compared by the scores of --run, or by dense similarity where there is an "
        "--embedding_model",
    )
    sampling_strategy: str = option(
        "top", choices=SAMPLING_STRATEGIES, help="the best candidates, or random ones of the range"
    )
    filter_model: str | None = option(
        None,
        aliases=("cross_encoder",),
        help="a reranker; candidates that it scores as high as the best positive are dropped, and "
        "its logits are kept as pos_scores and neg_scores",
    )
    filter_margin: float | None = option(
        None,
        aliases=("absolute_margin",),
        help="how far below the best positive --filter_model must score a negative, in logits; "
        "default: 0",
    )
    split: str | list[str] | None = option(
        None,
        help="shares of the queries for train, dev and test, as 0.8,0.1,0.1; for an --output named "
        "train.jsonl the others are dev.jsonl and test.jsonl beside it",
    )
    seed: int = option(42, minimum=0, help="the seed of the split and of every draw")

    def __post_init__(self) -> None:
        check_options(self)
        if self.range_min >= self.range_max:
            problem = f"must be less than --range_max {self.range_max}, not {self.range_min}"
            raise OptionError("range_min", problem)
        if self.relative_margin is not None and not 0 <= self.relative_margin < 1:
            raise OptionError("relative_margin", f"must be in [0, 1), not {self.relative_margin}")
        self._check_filter()
        self._check_unlabelled()
        self._check_retrieval()
        inputs = (self.corpus, self.queries, self.qrels, self.run)
        check_files(self.files, inputs, overwrite=self.overwrite)

    def _check_retrieval(self) -> None:
        if self.run:
            for name in ("retrieval", "embedding_model"):
                if getattr(self, name) is not None:
                    raise OptionError(name, "not allowed with --run")
            return
        if self.retrieval is None:
            self.retrieval = "both" if self.embedding_model else "bm25"
        if self.retrieval == "bm25" and self.embedding_model:
            raise OptionError("embedding_model", "not allowed with --retrieval bm25")
        if self.retrieval != "bm25" and not self.embedding_model:
            raise OptionError("retrieval", f"{self.retrieval} requires --embedding_model")

    def _check_unlabelled(self) -> None:
        for name in ("qrels", "filter_model", "relative_margin"):
            if self.unlabelled and getattr(self, name) is not None:
                raise OptionError(name, "not allowed with --unlabelled")

    def _check_filter(self) -> None:
        for name in (
            "max_length",
            "instruction",
            "token_budget",
            "threads",
            "revision",
            "filter_margin",
        ):
            if getattr(self, name) is not None and not self.filter_model:
                raise OptionError(name, "requires --filter_model")

    @property
    def shares(self) -> list[float]:
        """Return the shares of the split."""
        return parse_shares(self.split)

    @property
    def files(self) -> list[Path]:
        """Return the files of the shares."""
        return split_files(Path(self.output), self.shares)

    @property
    def window(self) -> Window:
        """Return the window of candidates that may become negatives."""
        return Window(self.range_min, self.range_max, self.relative_margin, self.sampling_strategy)
