"""BEIR folders: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

A relevant passage is right, any other judged one wrong; what is not judged is left to drawing.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from rerank_plugin.errors import InputError

from ..corpus import Corpus
from ..notes import Notes
from ..records import Judgement, read_qrels, read_queries
from .judged import Judged, judged


def read(folder: Path, notes: Notes, *, split: str, threshold: float | None) -> Iterator[Judged]:
    """The judged queries of a split, in the order of the judgements.

    Right is a grade of at least `threshold`, without one any above 0. What is left out is counted
    in `notes`.
    """
    files = [folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / f"{split}.tsv"]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file; a BEIR folder has it")
    queries = {query.id: query.text for query in read_queries(files[1])}
    by_query: dict[str, list[Judgement]] = {}
    for judgement in read_qrels(files[2]):
        if judgement.query not in queries:
            raise judgement.line.error(f"query {judgement.query!r} is not in {files[1].name}")
        by_query.setdefault(judgement.query, []).append(judgement)
    wanted = {of.passage for judgements in by_query.values() for of in judgements}
    left_out: dict[str, str] = {}
    with TemporaryDirectory(prefix="beir-") as work:
        corpus = Corpus.build(files[0], Path(work), wanted)
        for query, judgements in by_query.items():
            known = [of for of in judgements if of.passage in corpus.places]
            for of in judgements:
                if of.passage not in corpus.places:
                    blank = of.passage in corpus.blank_ids
                    reason = "blank" if blank else "not in corpus.jsonl"
                    example = f"for example {of.passage!r} ({of.line.path}:{of.line.number})"
                    told = f"judged passages that are {reason}, left out, {example}"
                    notes[left_out.setdefault(reason, told)] += 1
            texts = corpus.texts([corpus.places[of.passage] for of in known])
            right = [of.grade > 0 if threshold is None else of.grade >= threshold for of in known]
            yield judged(queries[query], zip(texts, right, strict=True), id=query)
        corpus.close()
