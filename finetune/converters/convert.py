"""`rerank-plugin convert`: other libraries' training data into groups, and back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from rerank_plugin.cli.console import bar, summary_stream
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.io.atomic import scratch_place, writing
from rerank_plugin.io.jsonl import DataPath, read_lines
from rerank_plugin.options import check_options, option

from ..data.groups import Group, parse_group
from ..data.reason_counts import ReasonCounts
from ..data.writer import check_files, group_line, record_line
from . import beir, flagembedding, labelled_table, msmarco, sentence_transformers, tevatron
from .grouping import group
from .labelled_query import LabelledQuery
from .rows import JSON, table_files
from .to_sentence_transformers import FORMATS, fitting, rows

#: The formats that are read from files, and what reads them.
READERS: dict[str, Callable[[DataPath, ReasonCounts], Iterator[LabelledQuery]]] = {
    "tevatron": tevatron.read,
    "flagembedding": flagembedding.read,
    "msmarco": msmarco.read,
}

#: Those that may have labels, of which a threshold says what is right.
LABELLED: dict[str, Callable[..., Iterator[LabelledQuery]]] = {
    "sentence-transformers": sentence_transformers.read,
    "table": labelled_table.read,
}

SOURCES = ("beir", *READERS, *LABELLED, "groups")
TARGETS = ("groups", "sentence-transformers")

#: What is read of a line with a group.
GROUP_FIELDS = {field.name for field in fields(Group)}


@dataclass(kw_only=True)
class ConvertOptions:
    """Convert training data of other libraries into groups, or groups into theirs."""

    from_: str = option(
        choices=SOURCES,
        help="what the data is: a beir folder, msmarco triples (.tsv) or records with passages and "
        "is_selected, sentence-transformers pairs, triplets, n-tuples or labelled ones, "
        "flagembedding, tevatron (MIRACL, Mr. TyDi), a table of query, passage, label, or groups",
    )
    data_path: str | list[str] = option(
        help="files, folders or globs: .jsonl, .json, .csv, .tsv, .parquet, or a saved data set"
    )
    output: str = option(help="the .jsonl file that is written")
    overwrite: bool = option(False, help="replace an earlier file")
    to: str = option("groups", choices=TARGETS, help="what the data becomes")
    output_format: str | None = option(
        None,
        choices=FORMATS,
        help="which of sentence-transformers' formats; default labeled-list",
    )
    threshold: float | None = option(
        None,
        help="a passage is right from this label on; default 1 where labels are whole numbers, and "
        "above 0 in a beir folder",
    )
    split: str | None = option(None, help="which of a beir folder's qrels are read; default train")
    negatives: int | None = option(
        None,
        help="how many passages a query without negatives gets, drawn from other queries'; "
        "default 7",
    )
    seed: int = option(42, help="fixes what is drawn")

    def __post_init__(self) -> None:
        check_options(self)
        if self.from_ == self.to:
            raise OptionError("to", "groups are groups already: choose sentence-transformers")
        self._check_use()
        if self.negatives is not None and self.negatives < 1:
            raise OptionError("negatives", f"{self.negatives} is less than 1")
        if self.from_ == "beir" and not isinstance(self.data_path, str | Path):
            raise OptionError("data_path", "one BEIR folder is needed")
        check_files([Path(self.output)], self.inputs, overwrite=self.overwrite)

    def _check_use(self) -> None:
        """Check that no option is given that nothing would be done with."""
        labelled, beir = self.from_ in ("beir", *LABELLED), self.from_ == "beir"
        for name, is_used, use in (
            ("output_format", self.to != "groups", "for --to sentence-transformers"),
            ("threshold", labelled, f"for labels: --from {', '.join(('beir', *LABELLED))}"),
            ("split", beir, "the name of a beir folder's qrels; `mine` splits queries"),
            ("negatives", self.from_ != "groups", "for data that is made into groups"),
        ):
            if getattr(self, name) is not None and not is_used:
                raise OptionError(name, f"is {use}")

    @property
    def inputs(self) -> Sequence[DataPath]:
        """The files that are read; what else lies in a BEIR folder may have been made of it."""
        if self.from_ != "beir":
            return [self.data_path]
        folder = Path(str(self.data_path))
        return [folder / "corpus.jsonl", folder / "queries.jsonl"]


def main(options: ConvertOptions) -> int:
    """Convert, and say what was left out."""
    counts = ReasonCounts()
    output = Path(options.output)
    groups = pairs = lines = 0
    with (
        TemporaryDirectory(prefix=".convert-", dir=scratch_place(output)) as work,
        writing(output) as file,
        bar("converting", "group") as progress,
    ):
        found_groups = read(options, Path(work), counts)
        output_format = None
        if options.to != "groups":
            output_format = options.output_format or FORMATS[0]
            found_groups = fitting(found_groups, output_format, counts)
        for found in found_groups:
            groups += 1
            pairs += len(found.documents)
            for line in output_lines(found, output_format):
                lines += 1
                file.write(line)
            progress.update()
        if not groups:
            raise InputError(f"{options.data_path}: no group comes of it{why(counts)}")
    what = f"{groups} groups" + (f", {lines} rows" if options.to != "groups" else "")
    told = summary_stream(output)
    told.write(f"{output}: {what}, {pairs} passages\n")
    told.write("".join(f"  {line}\n" for line in counts.lines()))
    return 0


def why(counts: ReasonCounts) -> str:
    """What was left out, in a line."""
    return f" ({', '.join(counts.lines())})" if counts.lines() else ""


def read(options: ConvertOptions, work: Path, counts: ReasonCounts) -> Iterator[Group]:
    """The groups of the data."""
    if options.from_ == "groups":
        for line in read_lines(options.data_path):
            for name in sorted((line.quick_record() or {}).keys() - GROUP_FIELDS):
                counts[f"fields {name!r}, left out"] += 1
            yield parse_group(line)
        return
    if options.from_ == "beir":
        # What is judged is little beside the corpus.
        folder, split = Path(str(options.data_path)), options.split or "train"
        size, parts = 0, beir.read(folder, counts, split=split, threshold=options.threshold)
    elif options.from_ in READERS:
        size, parts = bytes_of(options.data_path), READERS[options.from_](options.data_path, counts)
    else:
        reader = LABELLED[options.from_]
        size, parts = (
            bytes_of(options.data_path),
            reader(options.data_path, counts, threshold=options.threshold),
        )
    yield from group(
        parts, work, size=size, negatives=options.negatives or 7, seed=options.seed, counts=counts
    )


def bytes_of(data_path: DataPath) -> int:
    """About how many bytes of text some files hold, compressed ones several times their own."""
    size = 0
    for path in table_files(data_path, JSON):
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        times = 4 if path.suffix in (".gz", ".parquet") else 1
        size += times * sum(file.stat().st_size for file in files)
    return size


def output_lines(found: Group, output_format: str | None) -> Iterator[str]:
    """The lines of a group in one of sentence-transformers' formats, or as a group."""
    if output_format is None:
        yield group_line(found)
        return
    for row in rows(found, output_format):
        yield record_line(row)
