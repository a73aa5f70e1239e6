"""Mining: positives and negatives of the groups, and counts of what is left out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.finetune import mine_negatives
from rerank_plugin.finetune.data.beir_files import read_passages
from rerank_plugin.finetune.data.corpus import Corpus
from rerank_plugin.finetune.data.groups import read_groups
from rerank_plugin.finetune.data.reason_counts import ReasonCounts
from rerank_plugin.finetune.data.writer import parse_shares, split_files, split_sides
from rerank_plugin.finetune.mining.answers import Answers
from rerank_plugin.finetune.mining.bm25 import Bm25
from rerank_plugin.finetune.mining.false_negatives import AS_GOOD
from rerank_plugin.finetune.mining.result import MiningResult
from rerank_plugin.finetune.mining.retrieval import Hits, fuse
from rerank_plugin.finetune.text.duplicates import Duplicates
from rerank_plugin.finetune.text.normalize import text_key
from rerank_plugin.sample import sample_path

from ..factories import Run, mount, sample_texts, write_lines

SAMPLE: dict[str, Any] = {name: str(sample_path(f"{name}.jsonl")) for name in ("corpus", "queries")}
QRELS = str(sample_path("qrels.tsv"))


def mine_options(output: Path, *more: object) -> list[str]:
    files = ["--corpus", SAMPLE["corpus"], "--queries", SAMPLE["queries"], "--qrels", QRELS]
    return ["mine", *files, "--output", str(output), *map(str, more)]


def mine_sample(output: Path, **options: Any) -> MiningResult:
    return mine_negatives(**SAMPLE, qrels=QRELS, output=output, **options)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_mine_the_sample(cli: Run, tmp_path: Path) -> None:
    output = tmp_path / "train.jsonl"
    code, out, err = cli(*mine_options(output, "--split", "0.8,0.1,0.1", "--num_negatives", 7))
    assert code == 0, err
    files = [tmp_path / f"{name}.jsonl" for name in ("train", "dev", "test")]
    groups = [list(read_groups(file)) for file in files]
    assert [len(side) for side in groups] == [399, 50, 50]
    assert f"{output}: 399 groups" in out
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in files}
    queries = [{text_key(group.query) for group in side} for side in groups]
    assert (
        not queries[0] & queries[1] and not queries[0] & queries[2] and not queries[1] & queries[2]
    )
    assert all(len(group.neg) == 7 for side in groups for group in side)
    code, _, err = cli(*mine_options(output))
    assert code == 2
    assert "train.jsonl already exists" in err


# Few words, so that copies, near-copies and common words are frequent.
SENTENCES = st.lists(
    st.sampled_from(["ship", "sails", "noon", "dog", "cabin", "fare", "port", "storm"]), min_size=1
)
TEXTS = st.builds(" ".join, SENTENCES)
DRESS: "st.SearchStrategy[Callable[[str], str]]" = st.sampled_from(
    [str, str.upper, lambda text: f" {text}. ", lambda text: f"{text} {text}"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    passages=st.lists(st.builds(lambda text, dress: dress(text), TEXTS, DRESS), min_size=2),
    queries=st.lists(TEXTS, min_size=1, max_size=12),
    negatives=st.integers(1, 6),
    window=st.sampled_from([{}, {"range_min": 1, "range_max": 4}, {"relative_margin": 0.05}]),
    strategy=st.sampled_from(["top", "random"]),
    data=st.data(),
)
def test_no_positive_is_mined_as_a_negative(
    passages: list[str],
    queries: list[str],
    negatives: int,
    window: dict[str, Any],
    strategy: str,
    data: st.DataObject,
) -> None:
    positives = [
        data.draw(st.sets(st.integers(0, len(passages) - 1), min_size=1, max_size=3))
        for _ in queries
    ]
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_lines(
            folder / "corpus.jsonl",
            [{"_id": f"p{i}", "text": text} for i, text in enumerate(passages)],
        )
        write_lines(
            folder / "queries.jsonl", [{"_id": f"q{i}", "text": q} for i, q in enumerate(queries)]
        )
        judged = [f"q{i}\tp{position}\t1\n" for i, ps in enumerate(positives) for position in ps]
        (folder / "qrels.tsv").write_text("".join(judged), encoding="utf-8")
        options = {
            "corpus": folder / "corpus.jsonl",
            "queries": folder / "queries.jsonl",
            "qrels": folder / "qrels.tsv",
            "negatives": negatives,
            "sampling_strategy": strategy,
            "split": "0.5,0.5",
            **window,
        }
        results = []
        for attempt in ("a", "b"):
            output = folder / f"{attempt}-train.jsonl"
            try:
                mine_negatives(**options, output=output)
            except InputError:
                # Every passage is a copy of a positive, or all queries are the same.
                return
            results.append(
                [(folder / f"{attempt}-{side}.jsonl").read_bytes() for side in ("train", "dev")]
            )
        assert results[0] == results[1]
        sides = [[json.loads(line) for line in side.splitlines()] for side in results[0]]
    keys = [{text_key(group["query"]) for group in side} for side in sides]
    assert not keys[0] & keys[1]
    assert sum(map(len, keys)) == len(sides[0]) + len(sides[1])
    for group in (group for side in sides for group in side):
        known = [
            passages[position]
            for query, positions in zip(queries, positives, strict=True)
            if text_key(query) == text_key(group["query"])
            for position in positions
        ]
        duplicates = Duplicates(known)
        assert {text_key(text) for text in group["pos"]} == {text_key(text) for text in known}
        assert not any(duplicates.has(text) for text in group["neg"])
        assert len({text_key(text) for text in group["neg"]}) == len(group["neg"])
        assert 1 <= len(group["neg"]) <= negatives
        if not window:
            left = {text_key(text) for text in passages if not duplicates.has(text)}
            left.discard(text_key(group["query"]))
            assert len(group["neg"]) == min(negatives, len(left))


@pytest.mark.slow
def test_the_filter_drops_candidates_that_score_like_the_positive(
    tiny_model: Path, tmp_path: Path
) -> None:
    from rerank_plugin import Reranker

    output = tmp_path / "mined.jsonl"
    teacher = {"filter_model": tiny_model, "filter_margin": 0.01, "dtype": "float32"}
    result = mine_sample(output, negatives=3, **teacher)
    groups = read(output)
    assert result.passages_left_out[AS_GOOD] > 0
    reranker = Reranker(tiny_model, dtype="float32")
    for group in groups[:5]:
        pairs = [(group["query"], text) for text in group["pos"] + group["neg"]]
        scores = group["pos_scores"] + group["neg_scores"]
        assert np.allclose(reranker.logits(pairs), scores, atol=1e-3)
    for group in groups:
        assert max(group["neg_scores"]) < max(group["pos_scores"]) - 0.01
    result = mine_sample(output, negatives=30, range_max=2, overwrite=True, **teacher)
    drawn = result.remarks["negatives drawn at random, where candidates ran out"]
    # Candidates that the filter drops are not counted as drawn.
    assert 0 < drawn <= sum(len(group["neg"]) for group in read(output))


def test_the_filter_drops_a_candidate_with_the_positives_score(
    tiny_model: Path, tmp_path: Path
) -> None:
    # The model reads only the beginning, which is the same.
    same = "the ship sails at noon from here"
    corpus = [f"{same} {word} {word} {'and so on ' * 3}{word}" for word in ("dog", "cat")]
    teacher = {"filter_model": tiny_model, "max_length": 16, "dtype": "float32"}
    with pytest.raises(InputError, match="1 × queries for which no negative is left"):
        mine_files(tmp_path, corpus, {"text": "ship"}, **teacher)


def test_range_margin_and_retrieval(tmp_path: Path, sentence_model: Path) -> None:
    def mined(**options: Any) -> dict[str, list[str]]:
        output = tmp_path / "mined.jsonl"
        mine_sample(output, negatives=3, overwrite=True, **options)
        return {group["query"]: group["neg"] for group in read(output)}

    top = mined()
    later = mined(range_min=1)
    same = [query for query in top if later.get(query, [])[:2] == top[query][1:]]
    assert len(same) > 0.9 * len(top)
    dense = mined(embedding_model=sentence_model, retrieval="dense")
    both = mined(embedding_model=sentence_model)
    assert dense != top != both != dense
    assert mined(embedding_model=sentence_model) == both
    close = mined(relative_margin=0.3)
    assert close != top


@pytest.mark.parametrize("retrieval", ["bm25", "dense", "both"])
def test_groups_keep_the_scores_of_retrieval(
    tmp_path: Path, sentence_model: Path, retrieval: str
) -> None:
    output = tmp_path / "train.jsonl"
    model = {"retrieval": retrieval, "embedding_model": sentence_model}
    mine_sample(output, negatives=5, **({} if retrieval == "bm25" else model))
    groups = list(read_groups(output))
    for group in groups:
        scores = group.neg_retrieval_scores
        assert scores == sorted(scores or [], reverse=True)
        assert len(group.retrieval or []) == len(group.documents)
    first = [group.pos_retrieval_scores >= group.neg_retrieval_scores[:1] for group in groups]  # type: ignore[operator, index]
    assert 0 < sum(first) < len(first)


@pytest.mark.parametrize("options", [{"range_min": 1}, {"relative_margin": 0.05}])
def test_without_the_best_candidates_groups_have_no_scores(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    mine_sample(tmp_path / "train.jsonl", **options)
    assert not any(group.retrieval for group in read_groups(tmp_path / "train.jsonl"))


def test_positives_by_answers(tmp_path: Path) -> None:
    texts = sample_texts()
    corpus = write_lines(tmp_path / "c.jsonl", [{"id": i, "text": t} for i, t in enumerate(texts)])
    records: list[dict[str, object]] = [
        {"text": "x", "query": f"what about {text[:30]}", "answer": " ".join(text.split()[3:9])}
        for text in texts[:20]
    ]
    records.append({"query": "is it there", "answers": ["utter nonsense", "xyzzy"]})
    queries = write_lines(tmp_path / "q.jsonl", records)
    output = tmp_path / "out.jsonl"
    result = mine_negatives(corpus=corpus, queries=queries, output=output, negatives=5)
    groups = read(output)
    assert [group["pos"] for group in groups] == [[text] for text in texts[:20]]
    for group, record in zip(groups, records, strict=False):
        assert not any(Answers([str(record["answer"])]).are_in(text) for text in group["neg"])
    assert result.queries_left_out.total() == 1
    assert result.not_found == ["is it there"]


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("The party starts.", "art", False),
        ("The ART of it", "art", True),
        ("Built in 1,985 by us", "1985", False),
        ("在 北京 市", "北京市", True),
        ("三月", "三", True),
        ("nothing", "!", False),
        ("it was 5 in all", "-5%", False),
        ("It fell by -5 % then", "-5%", True),
        ("a letter C", "C++", False),
        ("I like C++, a lot", "c++", True),
        ("Washington D.C.", "Washington, D.C", True),
        ("他（在北京）", "在北京，", True),
        ("价格是5 USD左右", "5 usd", True),
        ("the rate is 1.5 percent", "5", False),
        ("5,000 dogs at 5:30", "5", False),
        ("1.5 or 5 5", "5", True),
        ("I like C#, not C++", "C", False),
        ("5 + 3, and 4. 2", "4", True),
    ],
)
def test_answers(text: str, answer: str, expected: bool) -> None:
    assert Answers([answer]).are_in(text) is expected


def test_records_that_are_left_out_are_counted(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "c.jsonl",
        [
            {"_id": "a", "title": "Harbour", "text": "The ship sails at noon."},
            {"_id": "b", "text": "the ship SAILS at noon"},
            {"_id": "c", "text": "Dogs travel in a cabin."},
            {"_id": "d", "text": " "},
            {"_id": "e", "text": "Harbour: the ship sails at noon!"},
            {"_id": "f", "text": "When does the ship sail?"},
            {"_id": "g", "text": "harbour, the ship sails at noon"},
        ],
    )
    write_lines(
        tmp_path / "q.jsonl",
        [
            {"_id": "1", "text": "when does the ship sail"},
            {"_id": "2", "text": "When does the SHIP sail "},
            {"_id": "3", "text": "who knows"},
            {"_id": "4", "text": "where is it"},
        ],
    )
    (tmp_path / "qrels").write_text(
        "query-id\tcorpus-id\tscore\n1\ta \t1\t\n2\tb\t2\n1\tc\t0\n4\tnone\t1\n9\ta\t1\n"
        "4\td\t1\n1\tg\t1\n"
    )
    output = tmp_path / "out.jsonl"
    result = mine_negatives(
        corpus=tmp_path / "c.jsonl",
        queries=tmp_path / "q.jsonl",
        qrels=tmp_path / "qrels",
        output=output,
    )
    out = "\n".join(result.lines())
    (group,) = read(output)
    assert group["pos"] == ["Harbour The ship sails at noon.", "the ship SAILS at noon"]
    assert group["neg"] == ["Dogs travel in a cabin."]
    for line in (
        "1 × queries that repeat another",
        "1 × queries without a positive in --qrels, for example '3'",
        "1 × queries whose positives are not in the corpus, or blank",
        "1 × judged passages that are not in the corpus, left out, for example 'none' "
        f"({tmp_path}/qrels:5)",
        f"1 × judged passages that are blank, left out, for example 'd' ({tmp_path}/qrels:7)",
        "1 × copies of the query itself",
        "1 × positives that are copies of another",
        "1 × blank passages of the corpus",
        "1 × judged queries that are not among the queries, left out, for example '9'",
        "1 × groups of fewer than 15 negatives",
    ):
        assert line in out


def mine_files(
    folder: Path, corpus: list[str], query: dict[str, Any], **options: Any
) -> list[dict[str, Any]]:
    """Mine for one query whose positive is the first passage of a corpus."""
    rows = [{"id": f"d{position}", "text": text} for position, text in enumerate(corpus)]
    write_lines(folder / "c.jsonl", rows)
    write_lines(folder / "q.jsonl", [{"id": "q", **query}])
    (folder / "qrels").write_text("q\td0\t1\n")
    mine_negatives(
        corpus=folder / "c.jsonl",
        queries=folder / "q.jsonl",
        qrels=folder / "qrels",
        output=folder / "out.jsonl",
        overwrite=True,
        **options,
    )
    return read(folder / "out.jsonl")


def test_no_copy_in_a_script_without_spaces(tmp_path: Path) -> None:
    texts = ["他在北京工作。", "他在，北京\n工作！", "天气很好。"]
    (group,) = mine_files(tmp_path, texts, {"text": "他在哪里工作"})
    assert group["neg"] == ["天气很好。"]


def test_answers_count_beside_judgements(tmp_path: Path) -> None:
    texts = ["It sails at noon.", "The ship leaves at noon, they say.", "Ships are big."]
    query = {"text": "when does the ship sail", "answer": "noon"}
    (group,) = mine_files(tmp_path, texts, query)
    assert group["neg"] == texts[2:]
    (group,) = mine_files(tmp_path, texts, {**query, "answer": ""})
    assert group["neg"] == texts[1:]


def test_groups_keep_the_grades_of_judgements(tmp_path: Path) -> None:
    texts = {"a": "It sails at noon.", "b": "Noon is near.", "c": "It SAILS at noon", "d": "Dogs."}
    corpus = [{"id": name, "text": text} for name, text in texts.items()]
    queries = [
        {"id": "1", "text": "when"},
        {"id": "2", "text": "When?"},
        {"id": "3", "text": "who"},
    ]
    (tmp_path / "qrels.tsv").write_text("1\ta\t1\n1\tc\t2\n2\tb\t3\n1\tb\t1\n3\td\t0.5\n")
    result = mine_negatives(
        corpus=str(write_lines(tmp_path / "c.jsonl", corpus)),
        queries=str(write_lines(tmp_path / "q.jsonl", queries)),
        qrels=str(tmp_path / "qrels.tsv"),
        output=tmp_path / "groups.jsonl",
    )
    first, second = read_groups(tmp_path / "groups.jsonl")
    # Of copies the highest grade counts, and of equal queries.
    assert dict(zip(first.pos, first.labels, strict=False)) == {texts["a"]: 2, texts["b"]: 3}
    assert second.pos_labels is None
    assert any(
        "1 × queries with labels that are not whole numbers" in line for line in result.lines()
    )


def test_negatives_drawn_at_random_keep_the_margin(tmp_path: Path) -> None:
    words = "ship sails noon"
    near = [f"{words} today {number}" for number in range(30)]
    far = [f"nothing of it {number}" for number in range(30)]
    corpus = [f"the {words}", *near, *far]
    options = {"relative_margin": 0.5, "range_max": 5, "negatives": 20}
    (group,) = mine_files(tmp_path, corpus, {"text": words}, **options)
    assert len(group["neg"]) == 20
    assert set(group["neg"]) <= set(far)


def test_few_passages_are_found_among_many_copies(tmp_path: Path) -> None:
    corpus = ["ship", *["dog"] * 500, "cat", *["dog"] * 300]
    (group,) = mine_files(tmp_path, corpus, {"text": "ship"}, negatives=2)
    assert set(group["neg"]) == {"dog", "cat"}


def test_tables_may_have_column_names(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_text("pid\ttext\n 1 \ta\n2\tpid\ttext\n", encoding="utf-8")
    passages = read_passages(path)
    assert next(passages).id == "1"
    with pytest.raises(InputError, match=r"c\.tsv:3: expected an id and a text"):
        next(passages)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.jsonl", '{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}', ":2: duplicate passage id"),
        ("c.jsonl", '{"id": 1, "text": 3}', ":1: field 'text' is a number"),
        ("c.jsonl", '{"text": "a"}', ":1: field 'id' is missing"),
        ("c.jsonl", '{"id": null, "text": "a"}', ":1: field 'id' is null"),
        ("c.jsonl", '{"id": " ", "text": "a"}', ":1: field 'id' is blank"),
        ("c.jsonl", '{"id": 1, "text": "a", "title": 5}', ":1: field 'title' is a number"),
        ("q.jsonl", '{"query_id": 1, "text": "x"}', ":1: field 'id' is missing"),
        ("q.jsonl", '{"id": 1, "text": "x", "answer": [" "]}', ":1: field 'answer' is neither a"),
        ("qrels", "1\ta\tyes", ":1: the grade 'yes' is not a number"),
        ("qrels", "1 0 a 1x", ":1: the grade '1x' is not a number"),
        ("qrels", "1 0 a", ":1: the grade 'a' is not a number"),
        ("qrels", "1\ta\tnan", ":1: the grade 'nan' is not a finite number"),
        ("qrels", "1\t\t1", ":1: expected query, passage and grade, found 3 columns, one of them"),
        ("qrels", "1\tnone\t1", "c.jsonl: found 'none' here and 'a' there; do the files"),
        ("qrels", "x\ta\t1", "q.jsonl: found 'x' here and '1' there; do the files"),
        ("qrels", '{"query-id": "1", "score": 1}', ":1: field 'corpus-id' is missing, expected an"),
        ("qrels", '{"qid": 1, "pid": null, "label": 1}', ":1: field 'pid' is null, expected an id"),
        (
            "c.jsonl",
            '{"id": 1.0, "text": "a"}',
            ":1: field 'id' is 1.0, expected a text or a whole",
        ),
        ("c.jsonl", '{"id": true, "text": "a"}', ":1: field 'id' is a boolean, expected a text"),
        ("c.jsonl", '{"id": 1, "body": "a"}', "missing, expected a text; the fields are 'id', 'b"),
        ("c.jsonl", '[{"id": 1}]', "c.jsonl:1: a JSON array, expected one JSON object a line"),
        ("c.jsonl", "id,text\n1,a", "c.jsonl:1: a table, as its first line"),
        ("q.jsonl", '{"id": 1, "text": "x"}\n{"id": 1, "text": "y"}', ":2: duplicate query id"),
        ("c.jsonl", '{"id": 1, "text": "a"}', "expected at least two passages"),
        (
            "c.jsonl",
            '{"id": "a", "text": "!"}\n{"id": 2, "text": "?"}',
            "no passage contains a word",
        ),
        ("q.jsonl", '{"id": 1, "text": " "}', "q.jsonl: no query is left (1 × blank queries"),
        ("q.jsonl", '{"id": 7, "text": "a"}', "q.jsonl: found '1' here and '7' there; do the"),
        ("qrels", "1\t2", ":1: expected query, passage and grade"),
        ("qrels", "1 0 a 1\n1 0 a x", ":2: the grade 'x' is not a number"),
        ("qrels", "1\ta\t0", "no passage is judged relevant"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, name: str, content: str, expected: str) -> None:
    write_lines(tmp_path / "c.jsonl", [{"id": "a", "text": "x y"}, {"id": "b", "text": "z"}])
    write_lines(tmp_path / "q.jsonl", [{"id": 1, "text": "x"}])
    (tmp_path / "qrels").write_text("1\ta\t1\n")
    (tmp_path / name).write_text(content + "\n", encoding="utf-8")
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError) as error:
        mine_negatives(
            corpus=tmp_path / "c.jsonl",
            queries=tmp_path / "q.jsonl",
            qrels=tmp_path / "qrels",
            output=tmp_path / "out.jsonl",
        )
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"negatives": 0}, "--negatives: must be at least 1, not 0"),
        ({"negatives": "7"}, "--negatives: invalid int value: '7'"),
        ({"range_min": 5, "range_max": 5}, "--range_min: must be less than --range_max 5, not 5"),
        ({"retrieval": "dense"}, "--retrieval: dense requires --embedding_model"),
        ({"split": "0.8,0.3"}, "--split: expected two or three positive numbers"),
        ({"split": "0.5,nan"}, "0.8,0.1,0.1, not '0.5,nan'"),
        ({"filter_margin": 1}, "--filter_margin: requires --filter_model"),
        (
            {"filter_model": "./x", "filter_margin": float("nan")},
            "--filter_margin: must be a finite",
        ),
        ({"filter_model": "./nowhere"}, "nowhere"),
        ({"embedding_model": "./nowhere"}, "--embedding_model: ./nowhere"),
        ({"run": "r.trec", "retrieval": "bm25"}, "--retrieval: not allowed with --run"),
        ({"relative_margin": 1}, "--relative_margin: must be in [0, 1), not 1.0"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as error:
        mine_sample(tmp_path / "out.jsonl", **options)
    assert expected in str(error.value)
    assert not list(tmp_path.iterdir())


def run_lines(hits: dict[str, list[str]]) -> list[str]:
    return [
        f"{query} Q0 {passage} {rank} {10 - rank} engine\n"
        for query, passages in hits.items()
        for rank, passage in enumerate(passages)
    ]


@pytest.fixture
def run_files(tmp_path: Path) -> dict[str, Any]:
    """Two queries with a run, which contains the positive of the first one."""
    texts = ["We sail at noon.", "Dogs pay.", "Bikes are free.", "A cabin.", "Fares.", " "]
    corpus = [{"_id": f"p{i}", "text": text} for i, text in enumerate(texts)]
    queries = [
        {"_id": "q0", "text": "when does it sail", "answer": "at noon"},
        {"_id": "q1", "text": "who pays", "answer": "dogs"},
        {"_id": "q2", "text": "a query that the run lacks", "answer": "fares"},
    ]
    hits = {"q0": ["p3", "p0", "p4", "gone", "p5"], "q1": ["p4", "p3"], "q9": ["p1"]}
    write_lines(tmp_path / "corpus.jsonl", corpus)
    write_lines(tmp_path / "queries.jsonl", queries)
    (tmp_path / "qrels.tsv").write_text("q0\tp0\t1\nq1\tp1\t1\nq2\tp2\t1\n")
    (tmp_path / "run.trec").write_text("".join(run_lines(hits)))
    names = ("corpus.jsonl", "queries.jsonl", "qrels.tsv", "run.trec")
    files = {name.partition(".")[0]: tmp_path / name for name in names}
    return files | {"output": tmp_path / "train.jsonl"}


def test_candidates_of_another_search_engine(run_files: dict[str, Any]) -> None:
    result = mine_negatives(**run_files, negatives=2)
    assert [(group["id"], group["pos"], group["neg"]) for group in read(run_files["output"])] == [
        ("q0", ["We sail at noon."], ["A cabin.", "Fares."]),
        ("q1", ["Dogs pay."], ["Fares.", "A cabin."]),
    ]
    assert result.queries_left_out.lines() == ["1 × queries that the run lacks, for example 'q2'"]
    assert result.passages_left_out.lines() == [
        "1 × documents of the run that the corpus lacks, left out, for example 'gone' of 'q0'",
        "1 × documents of the run that are blank, left out, for example 'p5' of 'q0'",
    ]
    why = "queries of the run that --queries does not have, left out"
    assert result.remarks[why] == 1


def test_the_margin_is_that_of_the_run(run_files: dict[str, Any]) -> None:
    """The run ranks p3 above the positive of q0, and lacks that of q1."""
    mine_negatives(**run_files, negatives=3, relative_margin=0.1)
    groups = {group["id"]: set(group["neg"]) for group in read(run_files["output"])}
    # All other passages are drawn at random.
    assert "A cabin." not in groups["q0"] and "Fares." in groups["q0"]
    assert groups["q1"].isdisjoint({"Fares.", "A cabin."})


def test_answers_are_found_in_the_run(run_files: dict[str, Any]) -> None:
    result = mine_negatives(**run_files | {"qrels": None}, negatives=2)
    assert [group["pos"] for group in read(run_files["output"])] == [["We sail at noon."]]
    # The run of q1 lacks the passage about dogs.
    assert result.not_found == ["who pays"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("q0 Q0 p1 1", "run.trec:1: expected query, Q0, document, rank, score and tag, found 4"),
        ("q0 Q0 p1 1 2 x\nq0 Q0 p1 1 high x", "run.trec:2: the score 'high' is not a finite"),
        ("q8 Q0 p1 1 2 x", r"run.trec: none of its query ids is in .*queries.jsonl: found 'q8'"),
        ("q0 Q0 a 1 2 x", r"run.trec: none of its document ids is in .*corpus.jsonl: found 'a'"),
        ("", "run.trec: the file is empty"),
    ],
)
def test_a_run_that_cannot_be_used(run_files: dict[str, Any], lines: str, expected: str) -> None:
    run_files["run"].write_text(lines)
    with pytest.raises(InputError, match=expected):
        mine_negatives(**run_files)
    assert not run_files["output"].exists()


def test_an_untrained_reranker_filters_nothing(tmp_path: Path, tiny_encoder: Path) -> None:
    with pytest.raises(InputError, match=f"{tiny_encoder} has no trained scoring head"):
        mine_sample(tmp_path / "out.jsonl", filter_model=tiny_encoder)


def test_an_interrupted_run_leaves_nothing(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rerank_plugin.finetune.mining.mine.select", interrupted)
    code, _, err = cli(*mine_options(tmp_path / "out.jsonl"))
    assert code == 1
    assert "interrupted" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_compiled_and_plain_bm25_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.build(SAMPLE["corpus"], tmp_path, set(), ReasonCounts())
    queries = sample_texts()[:40]
    plain = Bm25(corpus, tmp_path)
    monkeypatch.setattr("rerank_plugin.finetune.mining.bm25.COMPILED_FROM", 1)
    compiled = Bm25(corpus, tmp_path)
    assert compiled.compiled and not plain.compiled
    for one, other in zip(plain.search(queries, 108), compiled.search(queries, 108), strict=True):
        assert np.array_equal(one.positions, other.positions)
        assert np.array_equal(one.scores, other.scores)
    positions = [list(range(len(corpus)))] * len(queries)
    for hits, scores in zip(
        plain.search(queries, 108), plain.score(queries, positions), strict=True
    ):
        assert np.allclose(scores[hits.positions], hits.scores)
        assert (scores > 0).sum() == len(hits.positions)


def test_bm25_does_not_start_jax(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise SystemExit('JAX takes the memory of the GPU')")
    code = (
        "from rerank_plugin.finetune.mining.bm25 import load_bm25s\n"
        "print(load_bm25s().__name__, flush=True)\n"
        "import jax"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "bm25s\n"
    assert "JAX takes" in done.stderr, "other code can import it"


def test_a_corpus_on_disk_equals_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank_plugin.finetune.data.corpus.TEXT_BLOCK", 100)
    texts = ["ä" * 40, "b", "漢字" * 60, "d e", "f" * 99]
    path = write_lines(tmp_path / "c.jsonl", [{"id": i, "text": t} for i, t in enumerate(texts)])
    corpus = Corpus.build(path, tmp_path, {"3"}, ReasonCounts())
    assert list(corpus) == texts
    assert corpus.texts([4, 0, 2]) == [texts[4], texts[0], texts[2]]
    assert corpus.positions == {"3": 3}
    (tmp_path / "c.tsv").write_text("x\tone\ny\ttwo words\n")
    assert list(Corpus.build(tmp_path / "c.tsv", tmp_path, set(), ReasonCounts())) == [
        "one",
        "two words",
    ]


def test_fusion_by_reciprocal_rank() -> None:
    def ranked(*positions: int) -> Hits:
        return Hits(np.array(positions), np.arange(len(positions), 0, -1).astype(np.float32))

    assert fuse([ranked(5, 6, 7), ranked(7, 5, 8)], 10).positions.tolist() == [5, 7, 6, 8]
    assert fuse([ranked(2, 1), ranked(1, 2)], 1).positions.tolist() == [1]


@given(st.lists(st.text(min_size=1), min_size=5, unique_by=text_key), st.integers(0, 3))
def test_splits_keep_queries_together(queries: list[str], seed: int) -> None:
    shares = [0.6, 0.2, 0.2]
    sides = split_sides(queries, shares, seed)
    assert sides == split_sides(queries[::-1], shares, seed)
    counts = [list(sides.values()).count(side) for side in range(3)]
    assert sum(counts) == len({text_key(query) for query in queries})
    assert all(
        abs(count - share * sum(counts)) <= 1 for count, share in zip(counts, shares, strict=True)
    )


def test_no_side_of_a_split_is_empty(tmp_path: Path) -> None:
    text = json.dumps({"id": "q", "text": "one"})
    (tmp_path / "queries.jsonl").write_text(text)
    (tmp_path / "qrels").write_text("q\td\t1\n")
    write_lines(
        tmp_path / "corpus.jsonl", [{"id": "d", "text": "two"}, {"id": "e", "text": "three"}]
    )
    names = ("corpus.jsonl", "queries.jsonl", "qrels")
    files: dict[str, Any] = {name.partition(".")[0]: tmp_path / name for name in names}
    files["output"] = tmp_path / "o.jsonl"
    with pytest.raises(OptionError, match="--split: 1 queries are too few for a dev split"):
        mine_negatives(**files, split="0.8,0.2")
    rows = [{"id": "d", "text": "two"}, {"id": "e", "text": "three"}]
    write_lines(tmp_path / "queries.jsonl", [{"id": text, "text": text} for text in ("one", "six")])
    write_lines(tmp_path / "corpus.jsonl", rows)
    # For the second query every passage is a positive.
    (tmp_path / "qrels").write_text("one\td\t1\nsix\td\t1\nsix\te\t1\n")
    with pytest.raises(OptionError, match="--split: no group is left for o"):
        mine_negatives(**files, split="0.5,0.5")
    assert not list(tmp_path.glob("o*"))


def test_other_tables_are_not_read_as_json(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id,text\n1,a\n")
    path = write_lines(tmp_path / "q.jsonl", [{"query": "a", "answer": "a"}])
    with pytest.raises(InputError, match=r"c\.csv: unknown kind of file, expected .jsonl or .tsv"):
        mine_negatives(corpus=tmp_path / "c.csv", queries=path, output=tmp_path / "o.jsonl")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_terminated_command_leaves_nothing(name: str, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from rerank_plugin.cli.main import main\n"
        "from rerank_plugin.finetune.mining import mine\n"
        f"mine.Bm25 = lambda *_: os.kill(os.getpid(), signal.{name})\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, *mine_options(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("rerank-plugin mine: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_names_of_split_files() -> None:
    def names(output: str, shares: object) -> list[str]:
        return [file.name for file in split_files(Path(output), parse_shares(shares))]  # type: ignore[arg-type]

    assert names("data/train.jsonl", "0.8,0.2") == ["train.jsonl", "dev.jsonl"]
    assert names("mined.train.jsonl", "0.8,0.2") == ["mined.train.jsonl", "mined.dev.jsonl"]
    assert names("training.jsonl", "0.8,0.2") == ["training.jsonl", "training-dev.jsonl"]
    assert names("x.jsonl", ["0.8", "0.1", "0.1"]) == ["x.jsonl", "x-dev.jsonl", "x-test.jsonl"]
    for shares in ("1", "0.5,0.6", "a,b", "1,0"):
        with pytest.raises(OptionError, match="--split"):
            parse_shares(shares)


def test_groups_may_go_to_stdout(tmp_path: Path) -> None:
    """Without the summary, and without temporary files beside them."""
    expected = tmp_path / "train.jsonl"
    with expected.open("wb") as file:
        command = [sys.executable, "-m", "rerank_plugin", *mine_options(Path("/dev/stdout"))]
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, check=True)
    assert len(list(read_groups(expected))) == 499
    assert "/dev/stdout: 499 groups" in done.stderr and "next:" not in done.stderr
    assert list(tmp_path.iterdir()) == [expected]


@pytest.mark.parametrize("output", ["/dev/stdout", "/dev/null", "pipe"])
def test_a_stream_cannot_be_split(tmp_path: Path, output: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match=r"--output: .* is a stream"):
        mine_sample(tmp_path / output, split="0.5,0.5")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_the_printed_next_command_is_quoted_for_the_shell(cli: Run, tmp_path: Path) -> None:
    output = tmp_path / "it's my $data (1).jsonl"
    _, _, err = cli(*mine_options(output))
    command = err.splitlines()[-1].removeprefix("next:").split(maxsplit=1)[1]
    echoed = subprocess.run(
        f"printf '%s\\n' {command}", shell=True, capture_output=True, text=True, check=True
    )
    assert echoed.stdout.splitlines()[-1] == str(output)


def test_a_full_disk_is_no_corpus_cut_short(tmp_path: Path, mounts: Path) -> None:
    mount("tmpfs", mounts, "-o", "size=100k")
    corpus = Corpus.build(SAMPLE["corpus"], tmp_path, set(), ReasonCounts())
    (mounts / "all").write_bytes(bytes(96 * 1024))
    with pytest.raises(OSError, match="No space left"):
        Bm25(corpus, mounts)
    corpus.close()


def test_queries_without_labels_get_their_best_candidates(tmp_path: Path) -> None:
    output = tmp_path / "candidates.jsonl"
    result = mine_negatives(**SAMPLE, unlabelled=True, negatives=7, output=output)
    groups = read(output)
    assert result.groups == len(groups) > 400
    for group in groups:
        scores = group["pos_retrieval_scores"] + group["neg_retrieval_scores"]
        assert len(group["pos"]) == 1 and len(group["neg"]) == 7
        assert scores[0] == max(scores)
    remark = "queries whose first passage is the retriever's best, not a label"
    assert result.remarks[remark] == len(groups)
    with pytest.raises(OptionError, match="--qrels: not allowed with --unlabelled"):
        mine_sample(tmp_path / "b.jsonl", unlabelled=True)
