from rerank_plugin.finetune.data.groups import read_groups
from rerank_plugin.finetune.text.normalize import text_key
from rerank_plugin.io.jsonl import read_lines
from rerank_plugin.sample import sample_path

SPLITS = ("train", "dev", "test")


def texts(name: str) -> dict[str, str]:
    lines = read_lines(sample_path(name))
    return {str(line.record()["id"]): str(line.record()["text"]) for line in lines}


def qrels() -> dict[str, dict[str, int]]:
    judged: dict[str, dict[str, int]] = {}
    for row in sample_path("qrels.tsv").read_text("utf-8").splitlines():
        query, passage, grade = row.split("\t")
        judged.setdefault(query, {})[passage] = int(grade)
    return judged


def test_groups_agree_with_the_judgements() -> None:
    corpus, queries, judged = texts("corpus.jsonl"), texts("queries.jsonl"), qrels()
    groups = [group for name in SPLITS for group in read_groups(sample_path(f"{name}.jsonl"))]
    assert {group.id for group in groups} == set(queries) == set(judged)
    for group in groups:
        assert group.id is not None
        assert group.query == queries[group.id]
        assert sorted(group.pos) == sorted(corpus[passage] for passage in judged[group.id])
        assert set(group.neg) <= set(corpus.values())
        assert len(set(group.documents)) == len(group.documents)


def test_no_query_on_two_sides() -> None:
    sides = [
        {text_key(group.query) for group in read_groups(sample_path(f"{name}.jsonl"))}
        for name in SPLITS
    ]
    assert sum(len(side) for side in sides) == len(set().union(*sides))


def test_the_sample_has_its_documented_size() -> None:
    corpus, queries = texts("corpus.jsonl"), texts("queries.jsonl")
    assert len(corpus) == 108
    assert len(queries) == 499
    lengths = [len(text.split()) for text in corpus.values() if text.isascii()]
    assert min(lengths) < 40
    assert max(lengths) > 150
    chinese = [text for text in queries.values() if any("一" <= letter <= "鿿" for letter in text)]
    assert len(chinese) == 47
    assert sum(len(judged) == 2 for judged in qrels().values()) >= 50
