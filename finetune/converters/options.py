"""Options of converting, validated together for Python and the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.io.jsonl import DataPath
from rerank_plugin.options import check_options, option

from ..data.writer import check_files
from .readers import LABELLED, SOURCES
from .to_sentence_transformers import FORMATS

TARGETS = ("groups", "sentence-transformers")


@dataclass(kw_only=True)
class ConvertOptions:
    """Convert training data of other libraries into groups, or groups into theirs."""

    from_: str = option(
        choices=SOURCES,
        help="the format of the data: beir folder, msmarco triples (.tsv) or records with passages "
        "and is_selected, sentence-transformers pairs, triplets, n-tuples or labelled lists, "
        "flagembedding, tevatron (MIRACL, Mr. TyDi), a table of query, passage, label, or groups",
    )
    data_path: str | list[str] = option(
        help="files, folders or globs: .jsonl, .json, .csv, .tsv, .parquet, or a saved data set"
    )
    output: str = option(help="the .jsonl file to write")
    overwrite: bool = option(False, help="replace an earlier file")
    to: str = option("groups", choices=TARGETS, help="the format of the output")
    output_format: str | None = option(
        None,
        choices=FORMATS,
        help="the sentence-transformers format; default: labeled-list",
    )
    threshold: float | None = option(
        None,
        help="the lowest label of a positive; default: 1 where labels are whole numbers, and above "
        "0 in a beir folder",
    )
    split: str | None = option(None, help="the qrels of a beir folder to read; default: train")
    negatives: int | None = option(
        None,
        minimum=1,
        help="how many passages of other queries are drawn for a query without negatives; "
        "default: 7",
    )
    seed: int = option(42, help="the seed of the passages that --negatives draws")

    def __post_init__(self) -> None:
        check_options(self)
        if self.from_ == self.to:
            raise OptionError(
                "to", "the data already consists of groups: use sentence-transformers"
            )
        self._check_use()
        if self.from_ == "beir" and not isinstance(self.data_path, str | Path):
            raise OptionError("data_path", "expected one BEIR folder")
        check_files([Path(self.output)], self.inputs, overwrite=self.overwrite)

    def _check_use(self) -> None:
        """Refuse options that have no effect on the format."""
        labelled, beir = self.from_ in ("beir", *LABELLED), self.from_ == "beir"
        for name, is_used, use in (
            ("output_format", self.to != "groups", "requires --to sentence-transformers"),
            ("threshold", labelled, f"requires --from {' or '.join(('beir', *LABELLED))}"),
            ("split", beir, "requires --from beir; `rerank-plugin mine` splits queries"),
            ("negatives", self.from_ != "groups", "not allowed with --from groups"),
        ):
            if getattr(self, name) is not None and not is_used:
                raise OptionError(name, use)

    @property
    def inputs(self) -> Sequence[DataPath]:
        """Return the files that are read; others in a BEIR folder may be made from it."""
        if self.from_ != "beir":
            return [self.data_path]
        folder = Path(str(self.data_path))
        return [folder / "corpus.jsonl", folder / "queries.jsonl"]
