"""BEIR folders: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

A relevant passage is right, one judged 0 is wrong; what is not judged is left to drawing.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from rerank_plugin.errors import InputError

from ..corpus import Corpus
from ..records import read_qrels, read_queries
from .judged import Judged, judged


def read(folder: Path, split: str, notes: "Counter[str]") -> Iterator[Judged]:
    """The judged queries of a split, in the order of the judgements.

    What is left out is counted in `notes`.
    """
    files = [folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / f"{split}.tsv"]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file; a BEIR folder has it")
    queries = {query.id: query.text for query in read_queries(files[1])}
    by_query: dict[str, list[tuple[str, bool]]] = {}
    for judgement in read_qrels(files[2]):
        if judgement.query not in queries:
            raise judgement.line.error(f"query {judgement.query!r} is not in {files[1].name}")
        passages = by_query.setdefault(judgement.query, [])
        passages.append((judgement.passage, judgement.grade > 0))
    wanted = {passage for passages in by_query.values() for passage, _ in passages}
    with TemporaryDirectory(prefix="beir-") as work:
        corpus = Corpus.build(files[0], Path(work), wanted)
        for query, passages in by_query.items():
            known = [
                (corpus.places[name], right) for name, right in passages if name in corpus.places
            ]
            for name, _ in passages:
                if name in corpus.blank_ids:
                    notes["judged passages that are blank, left out"] += 1
                elif name not in corpus.places:
                    notes["judged passages that are not in corpus.jsonl, left out"] += 1
            texts = corpus.texts([place for place, _ in known])
            yield judged(queries[query], zip(texts, (right for _, right in known), strict=True))
        corpus.close()
