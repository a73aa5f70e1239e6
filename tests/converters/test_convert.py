"""Converters, each with data as the other library writes it."""

import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow.parquet
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from rerank_plugin.errors import InputError
from rerank_plugin.finetune import convert
from rerank_plugin.finetune.data.groups import read_groups

from ..factories import Run, sample_texts, write_lines

#: As in MS MARCO v1.1's train set.
RECORD = {
    "answers": ["Results-Based Accountability is a disciplined way of thinking."],
    "passages": {
        "is_selected": [0, 1, 0],
        "passage_text": [
            "Since 2007, the RBA's reputation has been affected by the 'Securency' scandal.",
            'Results-Based Accountability® (also known as RBA) is a "disciplined" way of thinking.',
            "RBA Recognized with the 2014 Microsoft US Regional Partner of the Year.",
        ],
        "url": ["https://en.wikipedia.org/wiki/RBA", "http://rba.example", "http://x.example"],
    },
    "query": "what is rba",
    "query_id": 19699,
    "query_type": "description",
    "wellFormedAnswers": [],
}


def converted(source: str, path: Any, **options: Any) -> list[dict[str, Any]]:
    output = Path(str(path)).parent / "converted.jsonl"
    options = {"output": output, "overwrite": True, **options}
    result = convert(from_=source, data_path=path, **options)
    assert result.path == options["output"]
    assert "to" in options or len(list(read_groups(output))) == result.groups
    return read(result.path)


def counted(source: str, path: Any, **options: Any) -> str:
    """Convert, and return the counts."""
    options = {"output": Path(str(path)).parent / "o.jsonl", "overwrite": True, **options}
    return "\n".join(convert(from_=source, data_path=path, **options).counts.lines())


def refused(source: str, path: Any, **options: Any) -> str:
    """Return the error of data that cannot be converted."""
    with pytest.raises(InputError) as error:
        converted(source, path, **options)
    return str(error.value)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def msmarco_files(folder: Path) -> dict[str, Path]:
    """Write one record in every format that MS MARCO is published or saved in."""
    passages = RECORD["passages"]
    assert isinstance(passages, dict)
    rows = [
        {"is_selected": flag, "passage_text": text, "url": url}
        for flag, text, url in zip(
            passages["is_selected"], passages["passage_text"], passages["url"], strict=True
        )
    ]
    original = write_lines(folder / "train_v1.1.jsonl", [{**RECORD, "passages": rows}])
    hub = write_lines(folder / "hub.jsonl", [RECORD])
    columns = folder / "train_v2.1.json"
    value = {"query": RECORD["query"], "passages": rows, "query_id": RECORD["query_id"]}
    columns.write_text(json.dumps({name: {"0": one} for name, one in value.items()}))
    (folder / "zipped").mkdir()
    with gzip.open(folder / "zipped" / "train_v2.1.json.gz", "wt") as file:
        file.write(columns.read_text())
    table = datasets.Dataset.from_list([RECORD])
    table.to_parquet(folder / "hub.parquet")
    table.save_to_disk(folder / "saved")
    frame = table.to_pandas()
    frame["passages"] = [json.dumps(passages)]
    frame.to_csv(folder / "json.csv", index=False)
    frame["passages"] = [str(rows)]
    frame.to_csv(folder / "python.csv", index=False)
    files = [original, hub, columns]
    for name, text in (
        ("lines.json", f"{json.dumps(RECORD)}\n\n{json.dumps(RECORD)}\n"),
        ("list.json", json.dumps([RECORD], indent=1)),
        ("record.json", json.dumps(RECORD)),
    ):
        (folder / name).write_text(text)
        files.append(folder / name)
    names = ("hub.parquet", "saved", "json.csv", "python.csv", "zipped")
    return {file.name: file for file in (*files, *(folder / name for name in names))}


def test_msmarco_records(cli: Run, tmp_path: Path) -> None:
    passages = RECORD["passages"]
    assert isinstance(passages, dict)
    texts = passages["passage_text"]
    for name, file in msmarco_files(tmp_path).items():
        (group,) = converted("msmarco", file)
        expected = {"query": RECORD["query"], "pos": [texts[1]], "neg": [texts[0], texts[2]]}
        assert group == {**expected, "id": "19699"}, name
    code, out, _ = cli(
        *("convert", "--from", "msmarco", "--data_path", tmp_path / "hub.jsonl"),
        *("--output", tmp_path / "o.jsonl"),
    )
    assert code == 0 and f"{tmp_path / 'o.jsonl'}: 1 groups, 3 passages" in out
    for what in ("'answers'", "'query_type'", "'url' of passages"):
        assert f"1 × fields {what}, left out" in out


def test_msmarco_triples(tmp_path: Path) -> None:
    path = tmp_path / "triples.train.small.tsv"
    lines = [
        ('is a "little caffeine ok', "We don't know a lot.", 'It is "generally safe'),
        ("what fruit is native", "Passion\rfruit.", "The kola nut."),
        ('is a "little caffeine ok', "We don't know a lot.", "Another passage."),
    ]
    path.write_bytes("".join("\t".join(line) + "\n" for line in lines).encode())
    first, second = converted("msmarco", path)
    assert second["pos"] == ["Passion\rfruit."]
    with_names = tmp_path / "named.tsv"
    with_names.write_bytes(b"query\tpositive\tnegative\n" + path.read_bytes())
    assert converted("msmarco", with_names) == [first, second]
    assert first == {
        "query": lines[0][0],
        "pos": [lines[0][1]],
        "neg": [lines[0][2], "Another passage."],
    }
    assert second["neg"] == ["The kola nut."]
    path.write_text("1\t2\t3\n")
    assert f"{path}:1: expected texts, found ids" in refused("msmarco", path)


def test_beir(tmp_path: Path) -> None:
    folder = tmp_path / "nfcorpus"
    (folder / "qrels").mkdir(parents=True)
    texts = sample_texts()[:20]
    write_lines(
        folder / "corpus.jsonl",
        [
            {"_id": f"MED-{i}", "title": f"Title {i}", "text": text, "metadata": {}}
            for i, text in enumerate(texts)
        ],
    )
    write_lines(
        folder / "queries.jsonl",
        [{"_id": f"PLAIN-{i}", "text": f"query {i}", "metadata": {"url": ""}} for i in range(4)],
    )
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nPLAIN-0\tMED-1\t2\nPLAIN-0\tMED-2\t0\nPLAIN-3\tMED-4\t1\n"
    )
    first, second = converted("beir", folder, negatives=1)
    assert first["query"] == "query 0"
    assert first["pos"] == [f"Title 1 {texts[1]}"]
    assert first["pos_labels"] == [2]
    assert first["neg"] == [f"Title 2 {texts[2]}"]
    (folder / "qrels" / "dev.tsv").write_text("PLAIN-0\tMED-1\t2\nPLAIN-0\tMED-3\t1\n")
    (graded,) = converted("beir", folder, split="dev", threshold=2)
    assert graded["neg"] == [f"Title 3 {texts[3]}"]
    # No negative is judged: drawn from the other queries' passages.
    assert second["neg"][0] in (first["pos"][0], first["neg"][0])
    (folder / "qrels" / "dev.tsv").write_text("PLAIN-0\tMED-99\t1\n")
    err = refused("beir", folder, split="dev")
    assert "corpus.jsonl: found 'MED-99' here and 'MED-0' there; do the files belong" in err
    (folder / "qrels" / "dev.tsv").unlink()
    err = refused("beir", folder, split="dev")
    assert "qrels/dev.tsv: no such file; --split can be train" in err


FLAG = {
    "query": "Five women walk along a beach wearing flip-flops.",
    "pos": ["Some women with flip-flops on, are walking along the beach"],
    "neg": ["The 4 women are sitting on the beach.", "There was a reform in 1996."],
    "pos_scores": [0.98],
    "neg_scores": [0.12, 0.01],
    "prompt": "Given a web search query, retrieve relevant passages.",
    "type": "normal",
}


def test_flagembedding(tmp_path: Path) -> None:
    plain = {"query": "q", "pos": ["a", "b"], "neg": ["c"]}
    more = {"query": "Q", "pos": ["d"], "neg": ["a", "e"]}
    bare = {"query": "r", "pos": ["z"], "neg": []}
    path = write_lines(tmp_path / "toy_finetune_data.jsonl", [FLAG, plain, more, bare])
    first, second, third = converted("flagembedding", path, negatives=2)
    assert first == {key: FLAG[key] for key in ("query", "pos", "neg", "pos_scores", "neg_scores")}
    assert second == {"query": "q", "pos": ["a", "b", "d"], "neg": ["c", "e"]}
    assert len(third["neg"]) == 2


@pytest.mark.parametrize("output_format", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv", "saved"])
def test_sentence_transformers_formats(
    tmp_path: Path, sentence_model: Path, output_format: Any, suffix: str
) -> None:
    if suffix == "csv" and output_format == "labeled-list":
        pytest.skip("lists do not go into CSV")
    texts = sample_texts()
    pairs = datasets.Dataset.from_dict(
        {"query": [f"about {text[:40]}" for text in texts[:10]], "answer": texts[:10]}
    )
    mined = mine_hard_negatives(
        pairs,
        SentenceTransformer(str(sentence_model), device="cpu"),
        corpus=texts,
        num_negatives=2,
        output_format=output_format,
        verbose=False,
    )
    path = tmp_path / f"mined.{suffix}"
    write: dict[str, Callable[[], object]] = {
        "jsonl": lambda: mined.to_json(path),
        "parquet": lambda: mined.to_parquet(path),
        "csv": lambda: mined.to_csv(path, index=False),
        "saved": lambda: mined.save_to_disk(path),
    }
    write[suffix]()
    groups = converted("sentence-transformers", path)
    assert [group["query"] for group in groups] == pairs["query"][:]
    assert [group["pos"] for group in groups] == [[text] for text in texts[:10]]
    assert all(len(group["neg"]) == 2 for group in groups)

    back = {"output": tmp_path / "back.jsonl", "output_format": output_format}
    converted("groups", tmp_path / "converted.jsonl", to="sentence-transformers", **back)
    rows = datasets.Dataset.from_json(str(tmp_path / "back.jsonl"), cache_dir=str(tmp_path))
    assert len(rows) == len(mined)
    names = {"query": "query", "answer": "passage" if output_format == "labeled-pair" else "docs"}
    if output_format in ("triplet", "n-tuple"):
        names["answer"] = "positive"
    expected = mined.rename_columns(
        {old: new for old, new in names.items() if old in mined.features}
    )
    assert sorted(map(str, rows)) == sorted(map(str, expected))


def test_pairs_get_passages_of_other_queries(tmp_path: Path) -> None:
    texts = sample_texts()[:30]
    rows = [{"anchor": f"question {i}", "positive": text} for i, text in enumerate(texts)]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    groups = converted("sentence-transformers", path, negatives=4)
    assert groups == converted("sentence-transformers", path, negatives=4)
    for group, text in zip(groups, texts, strict=True):
        assert group["pos"] == [text]
        assert len(set(group["neg"])) == 4
        assert text not in group["neg"]


def test_scores_of_tuples(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive": "a", "negative": "b", "scores": [2.5, 1.0]},
        {"query": "q", "positive": "a", "negative": "c", "scores": [2.5, -1.0]},
    ]
    (group,) = converted("sentence-transformers", write_lines(tmp_path / "t.jsonl", rows))
    assert group["pos_scores"] == [2.5]
    assert group["neg_scores"] == [1.0, -1.0]
    path = write_lines(tmp_path / "g.jsonl", [group])
    back = {"to": "sentence-transformers", "output_format": "triplet"}
    assert converted("groups", path, **back) == rows
    (row,) = converted("groups", path, **{**back, "output_format": "n-tuple"})
    assert row == {
        "query": "q",
        "positive": "a",
        "negative_1": "b",
        "negative_2": "c",
        "scores": [2.5, 1.0, -1.0],
    }


def test_retrieval_scores_are_kept(tmp_path: Path) -> None:
    group = {"query": "q", "pos": ["a"], "neg": ["b", "c"]}
    scores = {"pos_retrieval_scores": [-3.5], "neg_retrieval_scores": [1, 0.5]}
    path = write_lines(tmp_path / "g.jsonl", [group | scores])
    assert converted("flagembedding", path) == [group | scores]
    counts = counted("groups", path, to="sentence-transformers", output_format="triplet")
    assert "1 × retrieval scores of groups" in counts


GRADED = {"query": "q", "pos": ["a", "b", "c"], "neg": ["d"], "pos_labels": [3, 1, 2]}


def test_grades_are_kept(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "passage": text, "label": label}
        for text, label in zip("abcdaAe", (3, 1, 2, 0, 3, 1, 0), strict=True)
    ]
    table = write_lines(tmp_path / "t.jsonl", rows)
    assert converted("table", table) == [{**GRADED, "neg": ["d", "e"]}]
    (group,) = converted("table", table, threshold=2)
    assert (group["pos"], group["pos_labels"]) == (["a", "c"], [3, 2])
    path = write_lines(tmp_path / "g.jsonl", [GRADED])
    assert converted("flagembedding", path) == [GRADED]
    (row,) = converted("groups", path, to="sentence-transformers")
    assert row == {"query": "q", "docs": ["a", "b", "c", "d"], "labels": [3, 1, 2, 0]}
    assert converted("sentence-transformers", write_lines(tmp_path / "l.jsonl", [row])) == [GRADED]


def test_labels_of_all_passages_are_grades(tmp_path: Path) -> None:
    record = {"query": "q", "pos": ["a", "b"], "neg": ["c", "d"], "labels": [3, 1, 2, 0]}
    path = write_lines(tmp_path / "f.jsonl", [record])
    assert converted("flagembedding", path) == [GRADED]


def test_labels_that_are_no_grades(tmp_path: Path) -> None:
    rows = [
        {"query": query, "passage": f"{query}{label}", "label": label}
        for query, labels in (("a", (90, 5, 1)), ("b", (3.5, 3, 0)))
        for label in labels
    ]
    path = write_lines(tmp_path / "t.jsonl", rows)
    assert "2 × queries with labels that are not whole numbers from 1 to 10" in counted(
        "table", path, threshold=2
    )
    assert all("pos_labels" not in group for group in converted("table", path, threshold=2))


def test_formats_without_grades_count_them(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "g.jsonl", [GRADED])
    back = {"to": "sentence-transformers", "output_format": "labeled-pair"}
    assert "1 × groups with grades, for which labeled-pair has no column" in counted(
        "groups", path, **back
    )
    assert [row["label"] for row in converted("groups", path, **back)] == [1, 1, 1, 0]


def test_scores_instead_of_labels_need_a_threshold(tmp_path: Path, sentence_model: Path) -> None:
    texts = sample_texts()[:12]
    pairs = datasets.Dataset.from_dict({"query": [text[:30] for text in texts], "answer": texts})
    for output_format in ("labeled-list", "labeled-pair"):
        mined = mine_hard_negatives(
            pairs,
            SentenceTransformer(str(sentence_model), device="cpu"),
            num_negatives=2,
            output_format=output_format,
            output_scores=True,
            verbose=False,
        )
        path = tmp_path / f"{output_format}.jsonl"
        mined.to_json(path)
        error = refused("sentence-transformers", path)
        assert f"{path}:1: column 'score" in error and "not a whole number: give a --thr" in error
        assert converted("sentence-transformers", path, threshold=0.5)


def test_groups_with_and_without_scores_are_no_table(tmp_path: Path) -> None:
    plain = {"query": "r", "pos": ["c"], "neg": ["d"]}
    scored = {"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [1.0]}
    both = write_lines(tmp_path / "g.jsonl", [scored | {"neg_scores": [0.0]}, plain])
    half = write_lines(tmp_path / "h.jsonl", [scored, plain])
    back = {"to": "sentence-transformers", "output_format": "triplet"}
    error = refused("groups", both, **back)
    assert "passages of the first group all have teacher scores, those of 'r' not all" in error
    assert "1 × groups of which some passages have no score: without scores" in counted(
        "groups", half, **back
    )
    for output_format, left_out in (
        ("pair", "2 × negatives"),
        ("labeled-pair", "1 × groups with teacher scores"),
    ):
        assert left_out in counted("groups", both, **{**back, "output_format": output_format})
    assert len(read(tmp_path / "o.jsonl")) == 4


def test_options_without_effect_are_errors() -> None:
    for source, option, value, expected in (
        (
            "table",
            "split",
            "0.8,0.1,0.1",
            "--split: requires --from beir; `rerank-plugin mine`",
        ),
        ("table", "output_format", "triplet", "--output_format: requires --to sentence-tr"),
        ("msmarco", "threshold", 1, "--threshold: requires --from beir or sentence-tr"),
    ):
        assert expected in refused(source, "x.csv", **{option: value})


def test_columns_keep_their_meaning_whatever_their_order(tmp_path: Path) -> None:
    rows = [
        {"anchor": "q1", "positive": "p1", "negative": "n1"},
        {"negative": "n2", "positive": "p2", "anchor": "q2", "negative_2": "m2"},
    ]
    _, second = converted("sentence-transformers", write_lines(tmp_path / "t.jsonl", rows))
    assert second == {"query": "q2", "pos": ["p2"], "neg": ["n2", "m2"]}


def test_fields_that_the_other_format_lacks_are_counted(tmp_path: Path) -> None:
    record = {"query": "q", "pos": ["a b", "A, b!"], "neg": ["c", "c", "d"], "source": "wiki"}
    path = write_lines(tmp_path / "f.jsonl", [{**record, "id": 7, "neg_scores": [1, 0, 2]}])
    out = counted("flagembedding", path)
    assert "2 × copies of a passage in another case, spacing, punctuation or with another" in out
    assert "1 × fields 'source', left out" in out
    (group,) = read_groups(tmp_path / "o.jsonl")
    assert (group.id, group.pos, group.neg) == ("7", ["a b"], ["c", "d"])
    scored = {**record, "id": "7", "pos_scores": [1, 2], "neg_scores": [1, 0, 2]}
    path = write_lines(tmp_path / "g.jsonl", [scored, {"query": "r", "pos": ["x"], "neg": ["y"]}])
    out = counted("groups", path, to="sentence-transformers")
    assert "1 × groups with teacher scores, for which labeled-list has no column" in out
    assert "1 × ids of groups" in out
    error = refused("groups", path, to="sentence-transformers", output_format="n-tuple")
    assert "the first group has 3, 'r' has 1" in error


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    frame = pandas.DataFrame(
        {
            "id": [1, 2, 3, 4],
            "question": ['wer, "was"', 'wer, "was"', "wo", "wo"],
            "passage": ["ja\nzwei Zeilen", "nein", "hier", "dort"],
            "label": [1, 0, 0.2, 3],
        }
    )
    path = tmp_path / f"table.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    first, second = converted("table", path, threshold=0.5)
    assert first == {"query": 'wer, "was"', "pos": [frame["passage"][0]], "neg": ["nein"]}
    assert second == {"query": "wo", "pos": ["dort"], "neg": ["hier"], "pos_labels": [3]}
    assert "column 'label' is 0.2, not a whole number: give a --threshold" in refused("table", path)
    (second,) = converted("table", path, threshold=2, negatives=1)
    assert second["query"] == "wo"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("excel.csv", "query;passage;label\r\nwer;p;1,5\r\nwer;n;0,5\r\n"),
        ("capitals.csv", "Query, Passage ,LABEL\nwer,p,1.5\nwer,n,0.5\n"),
        ("empty_rows.csv", "query,passage,label\nwer,p,1.5\n,,\nwer,n,0.5\n,,\n, ,\n"),
        ("empty_columns.csv", "query,passage,label,,\nwer,p,1.5,,\nwer,n,0.5,,\n"),
        ("pandas_index.csv", ",query,passage,label\n0,wer,p,1.5\n1,wer,n,0.5\n"),
        (
            "indices.csv",
            "Unnamed: 0,Unnamed: 0.1,query,passage,label\n0,0,wer,p,1.5\n1,1,wer,n,0\n",
        ),
        ("mark.csv", "\ufeffquery,passage,label\nwer,p,1.5\nwer,n,0.5\n"),
        ("said.csv", "sep=|\nquery|passage|label\nwer|p|1.5\nwer|n|0.5\n"),
        ("quotes.csv", '"query"\t"passage"\t"label"\n"wer"\t"p"\t"1.5"\nwer\tn\t0.5\n'),
        ("table.txt", "query|passage|label\nwer|p|1.5\nwer|n|0.5\n"),
        ("table.jsonl", "query,passage,label\nwer,p,1.5\nwer,n,0.5\n"),
        (
            "one_line.jsonl",
            '[{"query": "wer", "passage": "p", "label": "2"}, '
            '{"query": "wer", "passage": "n", "label": false}]',
        ),
        (
            "pretty.json",
            '[\n{"query": "wer",\n"passage": "p", "label": 2},\n'
            '{"query": "wer", "passage": "n", "label": -1}]',
        ),
        (
            "columns.json",
            '{"query": {"0": "wer", "1": "wer"}, "passage": {"0": "p", "1": "n"}, '
            '"label": {"0": 1, "1": 0}}',
        ),
        (
            "lines.txt",
            '{"query": "wer", "passage": "p", "label": "1"}\n'
            '{"query": "wer", "passage": "n", "label": 0.5}\n',
        ),
    ],
)
def test_tables_of_many_programs(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    (group,) = converted("table", path, threshold=1)
    assert {name: group[name] for name in ("query", "pos", "neg")} == {
        "query": "wer",
        "pos": ["p"],
        "neg": ["n"],
    }
    assert "left out" not in counted("table", path, threshold=1)


def test_values_over_several_lines_and_columns_of_other_names(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('query;passage;label;Note\nq;"p;1\n2";1;x\nq;n;0;\n', encoding="utf-8")
    out = counted("table", path)
    assert json.loads((tmp_path / "o.jsonl").read_text())["pos"] == ["p;1\n2"]
    assert "2 × fields 'Note', left out" in out
    path.write_text('query;passage;label\nq;"p\n";1\nq;n;x\n', encoding="utf-8")
    assert f"{path}:4: column 'label' is 'x'" in refused("table", path)


PASSAGES = {
    "positive_passages": [{"docid": "7#0", "title": "T", "text": "p"}, {"text": "o"}],
    "negative_passages": [{"docid": "9#1", "title": "", "text": "n"}, {"title": None, "text": ""}],
}


@pytest.mark.parametrize(
    ("source", "record", "pos", "neg"),
    [
        ("tevatron", {"query_id": "1", "query": "q", **PASSAGES}, ["T p", "o"], ["n"]),
        ("sentence-transformers", {"q": "q", "positive": "p", "negatives": ["n", "m"]}, "p", "nm"),
        ("sentence-transformers", {"q": "q", "positives": ["p"], "negatives": ["n"]}, "p", "n"),
        (
            "sentence-transformers",
            {"query": "q", "positive": "p", "negative_1": "n", "negative_2": None},
            "p",
            "n",
        ),
        ("sentence-transformers", {"Query": "q", "Docs": ["p", "n"], "Labels": ["1", 0]}, "p", "n"),
        ("flagembedding", {"query": "q", "pos": ["p"], "neg": ["n", None, " "]}, "p", "n"),
        (
            "flagembedding",
            {"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": ["2"], "neg_scores": [None]},
            None,
            "'neg_scores' is null, expected a finite number",
        ),
        ("msmarco", {"query": "q", "passages": {"passage_text": ["p", None, "n"],
         "is_selected": [1, 0, 0]}}, "p", "n"),
    ],
)  # fmt: skip
def test_records_of_many_programs(
    tmp_path: Path, source: str, record: dict[str, Any], pos: Any, neg: Any
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [record])
    if pos is None:
        assert neg in refused(source, path)
        return
    (group,) = converted(source, path)
    assert (group["query"], group["pos"], group["neg"]) == ("q", [*pos], [*neg])
    # The same as an array, in one line and over several.
    for indent in (None, 1):
        path.write_text(json.dumps([record], indent=indent))
        assert converted(source, path) == [group]


def test_a_missing_positive_makes_no_negative_positive(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive": None, "negative": "n"},
        {"query": "r", "positive": "p", "negative": "n"},
        {"query": None, "positive": "p", "negative": "n"},
    ]
    path = write_lines(tmp_path / "a.jsonl", rows)
    out = counted("sentence-transformers", path)
    assert [group["query"] for group in read(tmp_path / "o.jsonl")] == ["r"]
    assert f"1 × blank passages, left out, for example {path}:1" in out
    assert f"1 × records with a blank query, left out, for example {path}:3" in out
    assert "1 × queries without a positive, left out" in out


def test_more_text_than_memory_goes_through_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"query": f"question {i % 40}", "passage": f"passage {i}", "label": i % 3 // 2}
        for i in range(400)
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    whole = converted("table", path)
    monkeypatch.setattr("rerank_plugin.finetune.converters.grouping.BUCKET", 5000)
    split = converted("table", path)
    assert [group["query"] for group in split] != [group["query"] for group in whole]
    assert sorted(map(str, split)) == sorted(map(str, whole))
    assert {file.name for file in tmp_path.iterdir()} == {"rows.jsonl", "converted.jsonl"}


DEEP = "[" * 5000 + "]" * 5000
INFINITE = '{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [Infinity]}'
MARGIN = '{"query": "q", "positive": "p", "negative": "n", "label": 0.3}'


#: Contents that cannot be converted, by the converter and the name of the file, and their errors.
BAD_INPUT: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("table", "a.csv"): [
        ("query,passage\nq,p\n", "a.csv:2: no column for the label"),
        ("query,passage,label\nq,p,good\n", ":2: column 'label' is 'good'"),
        ("query,passage,label\nq,p\n", ":2: 2 values for 3 columns"),
        ("query,passage,label\n,p,1\n", "1 × records with a blank query, left out"),
        ("query;passage;label\nq;p;1.000,5\n", ":2: column 'label' is '1.000,5'"),
        ("query,passage,label\nq,p,\n", ":2: column 'label' is '', expected a"),
        ("query,passage,label\nq,p,'1\n", ":2: column 'label' is"),
        ("PK\x03\x04", "a.csv: a zip archive or an Excel workbook: unpack it"),
        ("query,passage,label\nq,p,0\n", "no group can be made of it (1 × queries"),
        ('query,passage,label\nq,p,1\nq,"p,1\nr,p,0\n', ":3: cannot be read: a"),
        ("query,passage,query,label\n", ":1: two columns are called 'query'"),
        ("query,passage,label\nq,p,nan\n", ":2: column 'label' is 'nan'"),
    ],
    ("table", "a.jsonl"): [
        ('{"query": "q", "passage": 1, "label": 1}', ":1: column 'passage' is a"),
        ('{"query": "q", "passage": "p", "label": null}', "'label' is null"),
        ('{"query": "q", "passage": "p", "label": [1]}', "'label' is a list"),
        ("[1, 2]", "a.jsonl: expected a list of records, or an object of"),
    ],
    ("table", "a.json"): [
        ('{"data": []}', "expected a list of records, or an object of columns"),
    ],
    ("tevatron", "a.jsonl"): [
        ('{"query": "q"}', ":1: column 'positive_passages' is missing"),
        ('{"query": "q", "positive_passages": ["p"]}', "[0] is a string"),
        ('{"query": "q", "positive_passages": "p"}', "is a string, expected a"),
        (
            '{"query": "q", "positive_passages": [{"text": 1}], "negative_passages": null}',
            "'text' of positive_passages[0] is a number, expected a text",
        ),
    ],
    ("flagembedding", "a.jsonl"): [
        ('{"query": "q", "positive": "p"}', "--from sentence-transf"),
        ('{"query": "q", "pos": [1]}', ":1: pos[0] is a number"),
        ('{"query": 1, "pos": ["p"]}', ":1: column 'query' is a number"),
        ('{"query": "q", "pos": "p"}', ":1: column 'pos' is a string"),
        (
            '{"query": "q", "pos": ["p"], "negs": ["n"]}',
            ":1: unknown field 'negs', and no 'neg': rename or",
        ),
        (INFINITE, ":1: column 'pos_scores' is 'inf'"),
    ],
    ("sentence-transformers", "a.jsonl"): [
        ('{"q": "q", "d": ["p"]}', "which needs a column 'labels'"),
        ('{"query": "q"}', ":1: expected the query, passages"),
        (
            '{"a": "q", "b": "p", "label": 0}\n{"a": "q", "b": "o"}',
            ":2: the row has no 'label', unlike the first row",
        ),
        (MARGIN, ":1: 'label' is one number for the 2 passages"),
    ],
    ("table", "a.txt"): [
        ("x", "a.txt: unknown kind of file"),
    ],
    ("table", "a.parquet"): [
        ("x", "a.parquet: cannot be read"),
    ],
    ("sentence-transformers", "a.csv"): [
        ("q,d,label\na,b,c\n", ":2: column 'label' is 'c'"),
    ],
    ("msmarco", "a.csv"): [
        ('query,passages\nq,"[1, ..., 2]"\n', "has no 'passage_text'"),
        (f'query,passages\nq,"{DEEP}"\n', ":2: column 'passages' is neither"),
        ("query,passages\nq,{[1]: 2}\n", ":2: column 'passages' is neither"),
        ("query,passages\nq,['\\ud800']\n", ":2: column 'passages' has an unp"),
    ],
    ("msmarco", "a.jsonl"): [
        ('{"query": "q", "passages": [1]}', "has no 'passage_text'"),
    ],
    ("msmarco", "a.json"): [
        ("[1]", "a.json: expected a list of records"),
        (DEEP, "a.json: invalid JSON"),
        ('["\\ud800"]', "a.json: invalid JSON: a text has an unpaired surrogate"),
    ],
    ("sentence-transformers", "a.tsv"): [
        ("wo ist er\tHier.\nwann\tDann.\n", ":1: 'wo ist er' is"),
    ],
    ("groups", "a.jsonl"): [
        ("{}", "--to: the data already consists of groups"),
    ],
}


@pytest.mark.parametrize(
    ("source", "name", "content", "expected"),
    [(*key, *row) for key, rows in BAD_INPUT.items() for row in rows],
)
def test_bad_input_is_one_line(
    tmp_path: Path, source: str, name: str, content: str, expected: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    error = refused(source, path)
    assert expected in error and "\n" not in error
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_other_encodings_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text, line in (("query,passage,label\nq,p,1\nq,\xe9,0\n", 3), ("\xe9\n", 1)):
        path.write_bytes(text.encode("latin-1"))
        assert f"{path}:{line}: not UTF-8" in refused("table", path)


def test_bad_thresholds_and_several_data_sets(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list([FLAG])}).save_to_disk(tmp_path / "d")
    error = refused("table", tmp_path / "d")
    assert f"several data sets are saved there: give one, as {tmp_path / 'd' / 'train'}" in error
    error = refused("table", "x.csv", threshold=float("nan"))
    assert "--threshold: must be a finite number, not nan" in error


def test_copies_of_positives_are_not_negatives(tmp_path: Path) -> None:
    rows = [
        {"query": "q?", "passage": "The cat sat on the mat", "label": 1},
        {"query": "Q", "passage": "THE CAT, SAT ON THE MAT!", "label": 0},
        {"query": "q", "passage": "a dog", "label": 0},
        {"query": "q", "passage": "A dog.", "label": 0},
        {"query": "r", "passage": "R?", "label": 1},
        {"query": "R?", "passage": "Q", "label": 0},
        {"query": "a dog", "passage": "a", "label": 1},
    ]
    first, second, third = converted("table", write_lines(tmp_path / "t.jsonl", rows))
    assert first == {"query": "q?", "pos": ["The cat sat on the mat"], "neg": ["a dog"]}
    assert second == {"query": "r", "pos": ["R?"], "neg": ["Q"]}
    assert set(third["neg"]) == {"The cat sat on the mat", "R?", "Q"}


def test_ids_are_not_read_as_queries(tmp_path: Path) -> None:
    rows = [
        {"id": f"q{number}", "anchor": f"a {number}", "positive": f"p {number}"} for number in "12"
    ]
    first, _ = converted("sentence-transformers", write_lines(tmp_path / "t.jsonl", rows))
    assert first == {"query": "a 1", "pos": ["p 1"], "neg": ["p 2"]}


def test_labels_of_other_types(tmp_path: Path) -> None:
    rows = {"query": ["q", "q"], "passage": ["a", "b"], "label": [Decimal("0.9"), Decimal("0.1")]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet")
    frame = pandas.DataFrame({**rows, "label": [True, False]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for name, options in (("t.parquet", {"threshold": 0.5}), ("t.csv", {})):
        (group,) = converted("table", tmp_path / name, **options)
        assert group == {"query": "q", "pos": ["a"], "neg": ["b"]}


def test_expressions_in_a_csv_are_not_evaluated(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text in ("__import__('os').getcwd()", "[open('x')]", "[x for x in ()]"):
        path.write_text(f'query,passages\nq,"{text}"\n')
        assert ":2: column 'passages' is neither JSON nor a Python literal" in refused(
            "msmarco", path
        )
    path.write_text("query,passages\nq,\"{'passage_text': array(['p'], dtype=object)}\"\n")
    assert "; numpy printed it: save the data as Parquet or JSON" in refused("msmarco", path)


@pytest.mark.parametrize(
    ("source", "record"),
    [
        ("flagembedding", {"query": "q", "pos": ["p"], "neg": ["n"]}),
        ("msmarco", RECORD),
        ("sentence-transformers", {"anchor": "q", "positive": "p", "negative": "n"}),
        ("table", {"query": "q", "passage": "p", "label": 1}),
        (
            "tevatron",
            {
                "query": "q",
                "positive_passages": [{"text": "p"}],
                "negative_passages": [{"text": "n"}],
            },
        ),
    ],
)
def test_instructions_are_kept(source: str, record: dict[str, Any], tmp_path: Path) -> None:
    others = [{"query": "other", "passage": text, "label": 0} for text in "no"]
    instructed = [record | {"instruction": text} for text in ("Find fares.", None, "Find dogs.")]
    lines = [*instructed, *(others if source == "table" else [])]
    file = write_lines(tmp_path / "a.jsonl", lines)
    groups = converted(source, file)
    assert [group.get("instruction") for group in groups] == ["Find fares.", None, "Find dogs."]
    assert len({group["query"] for group in groups}) == 1
    assert "'instruction'" not in counted(source, file)
    file = write_lines(tmp_path / "bad.jsonl", [record | {"instruction": 3}])
    assert "a.jsonl" not in refused(source, file)
    assert "field 'instruction' is a number, expected a text" in refused(source, file)


def test_instructions_of_a_beir_folder_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", [{"_id": name, "text": name * 3} for name in "pno"])
    queries = [{"_id": "a", "text": "q", "instruction": "Find fares."}, {"_id": "b", "text": "q"}]
    write_lines(folder / "queries.jsonl", queries)
    qrels = "query-id\tcorpus-id\tscore\na\tp\t1\na\tn\t0\nb\tn\t1\nb\tp\t0\n"
    (folder / "qrels" / "train.tsv").write_text(qrels)
    groups = converted("beir", folder)
    assert [(group.get("instruction"), group["pos"]) for group in groups] == [
        ("Find fares.", ["ppp"]),
        (None, ["nnn"]),
    ]
    groups_file = write_lines(tmp_path / "groups.jsonl", groups)
    count = counted("groups", groups_file, to="sentence-transformers")
    assert "1 × instructions of groups, for which the format has no column" in count
