"""Converters, each on data as the library in question writes it."""

import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from rerank_plugin.finetune.converters.msmarco import literal
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


def convert(cli: Run, source: str, path: object, *more: object) -> list[dict[str, Any]]:
    output = Path(str(path)).parent / "converted.jsonl"
    arguments = ("--from", source, "--data_path", path, "--output", output, "--overwrite")
    code, _, err = cli("convert", *arguments, *more)
    assert code == 0, err
    groups = "--to" not in more
    assert not groups or list(read_groups(output))
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


def msmarco_files(folder: Path) -> dict[str, Path]:
    """The same record as every file in which it is found."""
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
    columns.write_text(json.dumps({name: {"0": own} for name, own in value.items()}))
    (folder / "zipped").mkdir()
    with gzip.open(folder / "zipped" / "train_v2.1.json.gz", "wt") as file:
        file.write(columns.read_text())
    table = datasets.Dataset.from_list([RECORD])
    table.to_parquet(folder / "hub.parquet")
    table.save_to_disk(folder / "saved")
    frame = table.to_pandas()
    frame.to_csv(folder / "numpy.csv", index=False)
    frame["passages"] = [json.dumps(passages)]
    frame.to_csv(folder / "json.csv", index=False)
    frame["passages"] = [str(rows)]
    frame.to_csv(folder / "python.csv", index=False)
    assert "array(" in (folder / "numpy.csv").read_text("utf-8")
    files = [original, hub, columns]
    for name, text in (
        ("lines.json", f"{json.dumps(RECORD)}\n\n{json.dumps(RECORD)}\n"),
        ("list.json", json.dumps([RECORD], indent=1)),
        ("record.json", json.dumps(RECORD)),
    ):
        (folder / name).write_text(text)
        files.append(folder / name)
    names = ("hub.parquet", "saved", "numpy.csv", "json.csv", "python.csv", "zipped")
    return {file.name: file for file in (*files, *(folder / name for name in names))}


def test_msmarco_records(cli: Run, tmp_path: Path) -> None:
    passages = RECORD["passages"]
    assert isinstance(passages, dict)
    texts = passages["passage_text"]
    for name, file in msmarco_files(tmp_path).items():
        (group,) = convert(cli, "msmarco", file)
        expected = {"query": RECORD["query"], "pos": [texts[1]], "neg": [texts[0], texts[2]]}
        assert group == {**expected, "id": "19699"}, name
    options = ("--output", tmp_path / "o.jsonl")
    _, out, _ = cli("convert", "--from", "msmarco", "--data_path", tmp_path / "hub.jsonl", *options)
    for what in ("'answers'", "'query_type'", "'url' of passages"):
        assert f"1 × fields {what}, left out" in out


def test_msmarco_triples(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "triples.train.small.tsv"
    lines = [
        ('is a "little caffeine ok', "We don't know a lot.", 'It is "generally safe'),
        ("what fruit is native", "Passion\rfruit.", "The kola nut."),
        ('is a "little caffeine ok', "We don't know a lot.", "Another passage."),
    ]
    path.write_bytes("".join("\t".join(line) + "\n" for line in lines).encode())
    first, second = convert(cli, "msmarco", path)
    assert second["pos"] == ["Passion\rfruit."]
    with_names = tmp_path / "named.tsv"
    with_names.write_bytes(b"query\tpositive\tnegative\n" + path.read_bytes())
    assert convert(cli, "msmarco", with_names) == [first, second]
    assert first == {
        "query": lines[0][0],
        "pos": [lines[0][1]],
        "neg": [lines[0][2], "Another passage."],
    }
    assert second["neg"] == ["The kola nut."]
    path.write_text("1\t2\t3\n")
    code, _, err = cli(
        *("convert", "--from", "msmarco", "--data_path", path, "--output", tmp_path / "o.jsonl")
    )
    assert code == 2
    assert f"{path}:1: these are ids" in err


def test_beir(cli: Run, tmp_path: Path) -> None:
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
    first, second = convert(cli, "beir", folder, "--negatives", 1)
    assert first["query"] == "query 0"
    assert first["pos"] == [f"Title 1 {texts[1]}"]
    assert first["neg"] == [f"Title 2 {texts[2]}"]
    (folder / "qrels" / "dev.tsv").write_text("PLAIN-0\tMED-1\t2\nPLAIN-0\tMED-3\t1\n")
    (graded,) = convert(cli, "beir", folder, "--split", "dev", "--threshold", 2)
    assert graded["neg"] == [f"Title 3 {texts[3]}"]
    # Nothing is judged wrong: drawn from the other queries' passages.
    assert second["neg"][0] in (first["pos"][0], first["neg"][0])
    (folder / "qrels" / "dev.tsv").write_text("PLAIN-0\tMED-99\t1\n")
    code, _, err = cli(
        *("convert", "--from", "beir", "--data_path", folder, "--split", "dev"),
        *("--output", tmp_path / "x.jsonl"),
    )
    assert code == 2
    assert "corpus.jsonl: it has 'MED-99', the other has 'MED-0'; do the files belong" in err
    (folder / "qrels" / "dev.tsv").unlink()
    code, _, err = cli(
        *("convert", "--from", "beir", "--data_path", folder, "--split", "dev"),
        *("--output", tmp_path / "x.jsonl"),
    )
    assert code == 2
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


def test_flagembedding(cli: Run, tmp_path: Path) -> None:
    plain = {"query": "q", "pos": ["a", "b"], "neg": ["c"]}
    more = {"query": "Q", "pos": ["d"], "neg": ["a", "e"]}
    bare = {"query": "r", "pos": ["z"], "neg": []}
    path = write_lines(tmp_path / "toy_finetune_data.jsonl", [FLAG, plain, more, bare])
    first, second, third = convert(cli, "flagembedding", path, "--negatives", 2)
    assert first == {key: FLAG[key] for key in ("query", "pos", "neg", "pos_scores", "neg_scores")}
    assert second == {"query": "q", "pos": ["a", "b", "d"], "neg": ["c", "e"]}
    assert len(third["neg"]) == 2


@pytest.mark.parametrize("output_format", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv", "saved"])
def test_sentence_transformers_formats(
    cli: Run, tmp_path: Path, sentence_model: Path, output_format: Any, suffix: str
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
    groups = convert(cli, "sentence-transformers", path)
    assert [group["query"] for group in groups] == pairs["query"][:]
    assert [group["pos"] for group in groups] == [[text] for text in texts[:10]]
    assert all(len(group["neg"]) == 2 for group in groups)

    back = convert(
        cli,
        "groups",
        tmp_path / "converted.jsonl",
        "--to",
        "sentence-transformers",
        "--output",
        tmp_path / "back.jsonl",
        "--output_format",
        output_format,
    )
    assert back == groups
    rows = datasets.Dataset.from_json(str(tmp_path / "back.jsonl"), cache_dir=str(tmp_path))
    assert len(rows) == len(mined)
    names = {"query": "query", "answer": "passage" if output_format == "labeled-pair" else "docs"}
    if output_format in ("triplet", "n-tuple"):
        names["answer"] = "positive"
    expected = mined.rename_columns(
        {old: new for old, new in names.items() if old in mined.features}
    )
    assert sorted(map(str, rows)) == sorted(map(str, expected))


def test_pairs_get_passages_of_other_queries(cli: Run, tmp_path: Path) -> None:
    texts = sample_texts()[:30]
    rows = [{"anchor": f"question {i}", "positive": text} for i, text in enumerate(texts)]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    groups = convert(cli, "sentence-transformers", path, "--negatives", 4)
    assert groups == convert(cli, "sentence-transformers", path, "--negatives", 4)
    for group, text in zip(groups, texts, strict=True):
        assert group["pos"] == [text]
        assert len(set(group["neg"])) == 4
        assert text not in group["neg"]


def test_scores_of_tuples(cli: Run, tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive": "a", "negative": "b", "scores": [2.5, 1.0]},
        {"query": "q", "positive": "a", "negative": "c", "scores": [2.5, -1.0]},
    ]
    (group,) = convert(cli, "sentence-transformers", write_lines(tmp_path / "t.jsonl", rows))
    assert group["pos_scores"] == [2.5]
    assert group["neg_scores"] == [1.0, -1.0]
    path = write_lines(tmp_path / "g.jsonl", [group])
    back = convert(
        cli, "groups", path, "--to", "sentence-transformers", "--output_format", "triplet"
    )
    assert back == rows
    (row,) = convert(
        cli, "groups", path, "--to", "sentence-transformers", "--output_format", "n-tuple"
    )
    assert row == {
        "query": "q",
        "positive": "a",
        "negative_1": "b",
        "negative_2": "c",
        "scores": [2.5, 1.0, -1.0],
    }


def test_scores_in_place_of_labels_need_a_threshold(
    cli: Run, tmp_path: Path, sentence_model: Path
) -> None:
    texts = sample_texts()[:12]
    pairs = datasets.Dataset.from_dict({"query": [text[:30] for text in texts], "answer": texts})
    output = tmp_path / "o.jsonl"
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
        source = ("convert", "--from", "sentence-transformers", "--data_path", path)
        options = ("--output", output, "--overwrite")
        code, _, err = cli(*source, *options)
        assert code == 2
        assert f"{path}:1: column 'score" in err and "no whole number: say with --threshold" in err
        assert cli(*source, *options, "--threshold", 0.5)[0] == 0


def test_groups_with_and_without_scores_are_no_table(cli: Run, tmp_path: Path) -> None:
    plain = {"query": "r", "pos": ["c"], "neg": ["d"]}
    scored = {"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [1.0]}
    both = write_lines(tmp_path / "g.jsonl", [scored | {"neg_scores": [0.0]}, plain])
    half = write_lines(tmp_path / "h.jsonl", [scored, plain])
    options = ("convert", "--from", "groups", "--to", "sentence-transformers", "--output")
    output = tmp_path / "o.jsonl"
    code, _, err = cli(*options, output, "--data_path", both, "--output_format", "triplet")
    assert code == 2
    assert "passages of the first group all have teacher scores, those of 'r' not all" in err
    code, out, _ = cli(*options, output, "--data_path", half, "--output_format", "triplet")
    assert code == 0
    assert "1 × groups of which some passages have no score: without scores" in out
    for output_format, left_out in (("pair", "2 × negatives"), ("labeled-pair", "2 × groups")):
        more = ("--data_path", both, "--output_format", output_format, "--overwrite")
        code, out, _ = cli(*options, output, *more)
        assert code == 0
        assert left_out.replace("2 × groups", "1 × groups with teacher scores") in out
    assert len(output.read_text().splitlines()) == 4


def test_options_that_nothing_is_done_with_are_errors(cli: Run, tmp_path: Path) -> None:
    for source, option, value, expected in (
        ("table", "split", "0.8,0.1,0.1", "--split: is the name of a beir folder's qrels"),
        ("table", "output_format", "triplet", "--output_format: is for --to sentence-transformers"),
        ("msmarco", "threshold", 1, "--threshold: is for labels: --from beir, sentence-tr"),
    ):
        code, _, err = cli(
            *("convert", "--from", source, "--data_path", "x.csv", f"--{option}", value),
            *("--output", tmp_path / "o.jsonl"),
        )
        assert code == 2
        assert expected in err


def test_columns_keep_their_meaning_whatever_their_order(cli: Run, tmp_path: Path) -> None:
    rows = [
        {"anchor": "q1", "positive": "p1", "negative": "n1"},
        {"negative": "n2", "positive": "p2", "anchor": "q2", "negative_2": "m2"},
    ]
    _, second = convert(cli, "sentence-transformers", write_lines(tmp_path / "t.jsonl", rows))
    assert second == {"query": "q2", "pos": ["p2"], "neg": ["n2", "m2"]}


def test_what_has_no_place_is_said(cli: Run, tmp_path: Path) -> None:
    record = {"query": "q", "pos": ["a b", "A, b!"], "neg": ["c", "c", "d"], "source": "wiki"}
    path = write_lines(tmp_path / "f.jsonl", [{**record, "id": 7, "neg_scores": [1, 0, 2]}])
    output = tmp_path / "o.jsonl"
    more = ("--output", output, "--overwrite")
    _, out, _ = cli("convert", "--from", "flagembedding", "--data_path", path, *more)
    assert "2 × copies of a passage in another case, spacing, punctuation or with another" in out
    assert "1 × fields 'source', left out" in out
    (group,) = read_groups(output)
    assert (group.id, group.pos, group.neg) == ("7", ["a b"], ["c", "d"])
    scored = {**record, "id": "7", "pos_scores": [1, 2], "neg_scores": [1, 0, 2]}
    path = write_lines(tmp_path / "g.jsonl", [scored, {"query": "r", "pos": ["x"], "neg": ["y"]}])
    back = ("--from", "groups", "--to", "sentence-transformers", "--data_path", path, *more)
    _, out, _ = cli("convert", *back)
    assert "1 × groups with teacher scores, for which labeled-list has no place" in out
    assert "1 × ids of groups" in out
    code, _, err = cli("convert", *back, "--output_format", "n-tuple")
    assert code == 2
    assert "the first group has 3, 'r' has 1" in err


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
def test_tables(cli: Run, tmp_path: Path, suffix: str) -> None:
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
    first, second = convert(cli, "table", path, "--threshold", 0.5)
    assert first == {"query": 'wer, "was"', "pos": [frame["passage"][0]], "neg": ["nein"]}
    assert second == {"query": "wo", "pos": ["dort"], "neg": ["hier"]}
    code, _, err = cli(
        "convert", "--from", "table", "--data_path", path, "--output", tmp_path / "o"
    )
    assert code == 2
    assert "column 'label' is 0.2, no whole number: say with --threshold" in err
    (second,) = convert(cli, "table", path, "--threshold", 2, "--negatives", 1)
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
def test_tables_as_they_come(cli: Run, tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    (group,) = convert(cli, "table", path, "--threshold", 1)
    assert group == {"query": "wer", "pos": ["p"], "neg": ["n"]}
    code, out, _ = cli(
        *("convert", "--from", "table", "--data_path", path, "--output", tmp_path / "o.jsonl"),
        *("--threshold", 1),
    )
    assert code == 0 and "left out" not in out


def test_values_over_several_lines_and_columns_of_other_names(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('query;passage;label;Note\nq;"p;1\n2";1;x\nq;n;0;\n', encoding="utf-8")
    output = ("--output", tmp_path / "o.jsonl")
    code, out, _ = cli("convert", "--from", "table", "--data_path", path, *output)
    assert code == 0
    assert json.loads((tmp_path / "o.jsonl").read_text())["pos"] == ["p;1\n2"]
    assert "2 × fields 'Note', left out" in out
    path.write_text('query;passage;label\nq;"p\n";1\nq;n;x\n', encoding="utf-8")
    code, _, err = cli("convert", "--from", "table", "--data_path", path, *output, "--overwrite")
    assert code == 2 and f"{path}:4: column 'label' is 'x'" in err


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
def test_records_as_they_come(
    cli: Run, tmp_path: Path, source: str, record: dict[str, Any], pos: Any, neg: Any
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [record])
    if pos is None:
        code, _, err = cli(
            "convert", "--from", source, "--data_path", path, "--output", tmp_path / "o"
        )
        assert code == 2 and neg in err
        return
    (group,) = convert(cli, source, path)
    assert (group["query"], group["pos"], group["neg"]) == ("q", [*pos], [*neg])
    # The same as an array, in one line and over several.
    for indent in (None, 1):
        path.write_text(json.dumps([record], indent=indent))
        assert convert(cli, source, path) == [group]


def test_a_missing_positive_makes_no_negative_positive(cli: Run, tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive": None, "negative": "n"},
        {"query": "r", "positive": "p", "negative": "n"},
        {"query": None, "positive": "p", "negative": "n"},
    ]
    path = write_lines(tmp_path / "a.jsonl", rows)
    output = tmp_path / "o.jsonl"
    code, out, _ = cli(
        "convert", "--from", "sentence-transformers", "--data_path", path, "--output", output
    )
    assert code == 0
    assert [json.loads(line)["query"] for line in output.read_text().splitlines()] == ["r"]
    assert f"1 × blank passages, left out, for example {path}:1" in out
    assert f"1 × records with a blank query, left out, for example {path}:3" in out
    assert "1 × queries without a positive, left out" in out


def test_more_text_than_memory_goes_through_files(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"query": f"question {i % 40}", "passage": f"passage {i}", "label": i % 3 // 2}
        for i in range(400)
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    whole = convert(cli, "table", path)
    monkeypatch.setattr("rerank_plugin.finetune.converters.grouping.BUCKET", 5000)
    parts = convert(cli, "table", path)
    assert [group["query"] for group in parts] != [group["query"] for group in whole]
    assert sorted(map(str, parts)) == sorted(map(str, whole))
    assert {file.name for file in tmp_path.iterdir()} == {"rows.jsonl", "converted.jsonl"}


DEEP = "[" * 5000 + "]" * 5000
INFINITE = '{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [Infinity]}'
MARGIN = '{"query": "q", "positive": "p", "negative": "n", "label": 0.3}'


@pytest.mark.parametrize(
    ("source", "name", "content", "expected"),
    [
        ("table", "a.csv", "query,passage\nq,p\n", "a.csv:2: no column for the label"),
        ("table", "a.csv", "query,passage,label\nq,p,good\n", ":2: column 'label' is 'good'"),
        ("table", "a.csv", "query,passage,label\nq,p\n", ":2: 2 values for 3 columns"),
        (
            "table",
            "a.csv",
            "query,passage,label\n,p,1\n",
            "1 × records with a blank query, left out",
        ),
        ("table", "a.csv", "query;passage;label\nq;p;1.000,5\n", ":2: column 'label' is '1.000,5'"),
        ("table", "a.csv", "query,passage,label\nq,p,\n", ":2: column 'label' is '', expected a"),
        ("table", "a.csv", "query,passage,label\nq,p,'1\n", ":2: column 'label' is"),
        (
            "table",
            "a.jsonl",
            '{"query": "q", "passage": 1, "label": 1}',
            ":1: column 'passage' is a",
        ),
        ("table", "a.jsonl", '{"query": "q", "passage": "p", "label": null}', "'label' is null"),
        ("table", "a.jsonl", '{"query": "q", "passage": "p", "label": [1]}', "'label' is a list"),
        ("table", "a.jsonl", "[1, 2]", "a.jsonl: expected a list of records, or an object of"),
        ("table", "a.json", '{"data": []}', "expected a list of records, or an object of columns"),
        ("table", "a.csv", "PK\x03\x04", "a.csv: a zip archive or an Excel workbook: unpack it"),
        ("tevatron", "a.jsonl", '{"query": "q"}', ":1: column 'positive_passages' is missing"),
        ("tevatron", "a.jsonl", '{"query": "q", "positive_passages": ["p"]}', "[0] is a string"),
        (
            "tevatron",
            "a.jsonl",
            '{"query": "q", "positive_passages": "p"}',
            "is a string, expected a",
        ),
        (
            "tevatron",
            "a.jsonl",
            '{"query": "q", "positive_passages": [{"text": 1}], "negative_passages": null}',
            "'text' of positive_passages[0] is a number, expected a text",
        ),
        ("flagembedding", "a.jsonl", '{"query": "q", "positive": "p"}', "--from sentence-transf"),
        ("flagembedding", "a.jsonl", '{"query": "q", "pos": [1]}', ":1: pos[0] is a number"),
        (
            "flagembedding",
            "a.jsonl",
            '{"query": 1, "pos": ["p"]}',
            ":1: column 'query' is a number",
        ),
        (
            "sentence-transformers",
            "a.jsonl",
            '{"q": "q", "d": ["p"]}',
            "which needs a column 'labels'",
        ),
        ("table", "a.txt", "x", "a.txt: unknown kind of file"),
        ("table", "a.parquet", "x", "a.parquet: cannot be read"),
        ("table", "a.csv", "query,passage,label\nq,p,0\n", "no group comes of it (1 × queries"),
        ("flagembedding", "a.jsonl", '{"query": "q", "pos": "p"}', ":1: column 'pos' is a string"),
        ("sentence-transformers", "a.jsonl", '{"query": "q"}', ":1: expected the query, passages"),
        (
            "sentence-transformers",
            "a.jsonl",
            '{"a": "q", "b": "p", "label": 0}\n{"a": "q", "b": "o"}',
            ":2: the row has no 'label', other than the first row",
        ),
        (
            "flagembedding",
            "a.jsonl",
            '{"query": "q", "pos": ["p"], "negs": ["n"]}',
            ":1: unknown field 'negs', and no 'neg': rename it",
        ),
        ("sentence-transformers", "a.csv", "q,d,label\na,b,c\n", ":2: column 'label' is 'c'"),
        ("msmarco", "a.csv", 'query,passages\nq,"[1, ..., 2]"\n', ": its middle was left out"),
        ("msmarco", "a.jsonl", '{"query": "q", "passages": [1]}', "has no 'passage_text'"),
        ("msmarco", "a.json", "[1]", "a.json: expected a list of records"),
        ("msmarco", "a.json", DEEP, "a.json: broken JSON"),
        ("msmarco", "a.json", '["\\ud800"]', "a.json: broken JSON: a text holds half a surrogate"),
        ("msmarco", "a.csv", f'query,passages\nq,"{DEEP}"\n', ":2: column 'passages' is neither"),
        ("msmarco", "a.csv", "query,passages\nq,{[1]: 2}\n", ":2: column 'passages' is neither"),
        ("msmarco", "a.csv", "query,passages\nq,['\\ud800']\n", ":2: column 'passages' holds half"),
        ("table", "a.csv", 'query,passage,label\nq,p,1\nq,"p,1\nr,p,0\n', ":3: cannot be read: a"),
        ("table", "a.csv", "query,passage,query,label\n", ":1: two columns are called 'query'"),
        ("table", "a.csv", "query,passage,label\nq,p,nan\n", ":2: column 'label' is 'nan'"),
        ("flagembedding", "a.jsonl", INFINITE, ":1: column 'pos_scores' is 'inf'"),
        (
            "sentence-transformers",
            "a.jsonl",
            MARGIN,
            ":1: 'label' is one number for the 2 passages",
        ),
        ("sentence-transformers", "a.tsv", "wo ist er\tHier.\nwann\tDann.\n", ":1: 'wo ist er' is"),
        ("groups", "a.jsonl", "{}", "--to: groups are groups already"),
    ],
)
def test_bad_input_is_one_line(
    cli: Run, tmp_path: Path, source: str, name: str, content: str, expected: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    output = tmp_path / "o.jsonl"
    code, out, err = cli("convert", "--from", source, "--data_path", path, "--output", output)
    assert (code, out) == (2, "")
    assert expected in err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == [path]


def test_other_encodings_are_told_with_their_line(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text, line in (("query,passage,label\nq,p,1\nq,\xe9,0\n", 3), ("\xe9\n", 1)):
        path.write_bytes(text.encode("latin-1"))
        code, _, err = cli(
            *("convert", "--from", "table", "--data_path", path, "--output", tmp_path / "o.jsonl")
        )
        assert code == 2
        assert f"{path}:{line}: not UTF-8" in err and "Traceback" not in err


def test_bad_thresholds_and_several_data_sets(cli: Run, tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list([FLAG])}).save_to_disk(tmp_path / "d")
    output = ("--output", tmp_path / "o.jsonl")
    code, _, err = cli("convert", "--from", "table", "--data_path", tmp_path / "d", *output)
    assert code == 2
    assert f"several data sets are saved there: give one, as {tmp_path / 'd' / 'train'}" in err
    code, _, err = cli(
        *("convert", "--from", "table", "--data_path", "x.csv", "--threshold", "nan", *output)
    )
    assert code == 2
    assert "--threshold: nan is not a finite number" in err


def test_copies_of_right_passages_are_not_wrong(cli: Run, tmp_path: Path) -> None:
    rows = [
        {"query": "q?", "passage": "The cat sat on the mat", "label": 1},
        {"query": "Q", "passage": "THE CAT, SAT ON THE MAT!", "label": 0},
        {"query": "q", "passage": "a dog", "label": 0},
        {"query": "q", "passage": "A dog.", "label": 0},
        {"query": "r", "passage": "R?", "label": 1},
        {"query": "R?", "passage": "Q", "label": 0},
        {"query": "a dog", "passage": "a", "label": 1},
    ]
    first, second, third = convert(cli, "table", write_lines(tmp_path / "t.jsonl", rows))
    assert first == {"query": "q?", "pos": ["The cat sat on the mat"], "neg": ["a dog"]}
    assert second == {"query": "r", "pos": ["R?"], "neg": ["Q"]}
    assert set(third["neg"]) == {"The cat sat on the mat", "R?", "Q"}


def test_ids_are_no_queries(cli: Run, tmp_path: Path) -> None:
    rows = [{"id": f"q{place}", "anchor": f"a {place}", "positive": f"p {place}"} for place in "12"]
    first, _ = convert(cli, "sentence-transformers", write_lines(tmp_path / "t.jsonl", rows))
    assert first == {"query": "a 1", "pos": ["p 1"], "neg": ["p 2"]}


def test_labels_of_other_types(cli: Run, tmp_path: Path) -> None:
    rows = {"query": ["q", "q"], "passage": ["a", "b"], "label": [Decimal("0.9"), Decimal("0.1")]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet")
    frame = pandas.DataFrame({**rows, "label": [True, False]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for name, more in (("t.parquet", ("--threshold", 0.5)), ("t.csv", ())):
        (group,) = convert(cli, "table", tmp_path / name, *more)
        assert group == {"query": "q", "pos": ["a"], "neg": ["b"]}


def test_nothing_in_a_csv_is_run() -> None:
    import ast

    value = {"a": np.array(["x", "y"], object), "b": np.array([0, 1], np.int32)}
    assert literal(ast.parse(repr(value), mode="eval").body) == {"a": ["x", "y"], "b": [0, 1]}
    for text in ("__import__('os').getcwd()", "array([open('x')])", "[x for x in ()]"):
        with pytest.raises(ValueError):
            literal(ast.parse(text, mode="eval").body)
