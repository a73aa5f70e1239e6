"""Gaps of public data sets are left out and reported by all commands; mix-ups are errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from rerank_plugin.errors import InputError
from rerank_plugin.finetune.evaluation.trec_run import open_run
from rerank_plugin.io.atomic import write_json

from ..factories import Run, sample_texts, write_lines

QRELS, RUN, CORPUS, QUERIES = "qrels/train.tsv", "run.trec", "corpus.jsonl", "queries.jsonl"
COMMANDS = ("mine", "convert", "evaluate")
TEXTS = sample_texts()[:8]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set without a gap: three queries, each with a relevant and an irrelevant passage."""
    (tmp_path / "qrels").mkdir()
    write_lines(
        tmp_path / "corpus.jsonl",
        [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(TEXTS)],
    )
    write_lines(
        tmp_path / "queries.jsonl", [{"_id": f"q{i}", "text": TEXTS[i][:30]} for i in range(3)]
    )
    judged = [f"q{i}\td{i}\t2\nq{i}\td{i + 1}\t0\n" for i in range(3)]
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    ranked = [f"q{i} Q0 d{d} {d + 1} {9.5 - d} bm25\n" for i in range(3) for d in range(6)]
    (tmp_path / "run.trec").write_text("".join(ranked))
    return tmp_path


def execute(cli: Run, folder: Path, command: str) -> tuple[int, str]:
    """Return exit code and output; `evaluate` only reads its data, without a model."""
    files: dict[str, Any] = {
        "corpus": folder / CORPUS,
        "queries": folder / QUERIES,
        "qrels": next(folder.glob("qrels/train.*")),
    }
    if command == "evaluate":
        try:
            with open_run(folder / RUN, **files) as run:
                write_json(folder / "output.jsonl", run.run_order().means)
                return 0, "\n".join(run.counts.lines())
        except InputError as error:
            return 2, str(error)
    named = [text for name, file in files.items() for text in (f"--{name}", file)]
    source = named if command == "mine" else ["--from", "beir", "--data_path", folder]
    code, out, err = cli(command, *source, "--output", folder / "output.jsonl", "--overwrite")
    assert "Traceback" not in err
    return code, out + err


def add(folder: Path, changes: dict[str, str]) -> None:
    for name, lines in changes.items():
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(lines + "\n")


NO_TEXT = "1 × relevant passages without a text in the corpus, which count as not found"
BLANK = "1 × judged passages that are blank, left out"
TWICE = "1 × documents that come twice for a query: the best score counts"

#: Lines that are added to files, and the message of every command that reads them.
GAPS: list[tuple[dict[str, str], dict[str, str | None]]] = [
    (
        {QRELS: "q0\tMED-1/2 x\t1"},
        {
            "mine": "1 × judged passages that are not in the corpus, left out, for example 'MED",
            "convert": "1 × judged passages that are not in the corpus, left out, for example 'MED",
            "evaluate": NO_TEXT,
        },
    ),
    (
        {CORPUS: '{"_id": "e", "title": "", "text": ""}', QRELS: "q0\te\t1"},
        {"mine": BLANK, "convert": BLANK, "evaluate": NO_TEXT},
    ),
    (
        {CORPUS: '{"_id": 77, "title": null, "text": null}', QRELS: "q0\t77\t1"},
        {"mine": BLANK, "convert": BLANK, "evaluate": NO_TEXT},
    ),
    (
        {QRELS: "PLAIN-1\td0\t1"},
        {
            "mine": "1 × judged queries that are not among the queries, left out, for example 'PL",
            "convert": "1 × judged queries that are not among the queries, left out, for example",
            "evaluate": "1 × queries of the qrels that the run lacks",
        },
    ),
    (
        {QUERIES: '{"_id": "q9", "text": "nobody judged it"}', RUN: "q9 Q0 d1 1 3 bm25"},
        {
            "mine": "1 × queries without a positive in --qrels, for example 'q9'",
            "convert": "1 × queries without a judgement in the split",
            "evaluate": "1 × queries of the run without a judgement, left out, for example 'q9'",
        },
    ),
    (
        {QUERIES: '{"_id": "q9", "text": null}'},
        dict.fromkeys(COMMANDS, "1 × blank queries, left out, for example 'q9' ("),
    ),
    (
        {QUERIES: "\n" + json.dumps({"_id": "q0", "text": TEXTS[0][:30]})},
        dict.fromkeys(COMMANDS, "1 × repeated queries, with the same id and text"),
    ),
    (
        {CORPUS: json.dumps({"_id": "d3", "text": TEXTS[3]}) + "\r\n\r"},
        dict.fromkeys(COMMANDS, "1 × repeated passages, with the same id and text"),
    ),
    (
        {QRELS: "q0\td0\t1\nq0\td0\t2\t"},
        dict.fromkeys(COMMANDS, "1 × passages judged twice for a query: the highest grade counts"),
    ),
    ({QRELS: "q0\t0\td4\t-2\nq1 0 d4 1.0"}, dict.fromkeys(COMMANDS, "")),
    ({QRELS: '{"query-id": "q0", "corpus-id": "d5", "score": 1}'}, dict.fromkeys(COMMANDS, "")),
    ({CORPUS: '\ufeff{"_id": "d#9", "text": "\\u0000 \\u2028"}'}, dict.fromkeys(COMMANDS, "")),
    (
        {RUN: "q0 Q0 lost 9 1e-3 bm25"},
        {"evaluate": "1 × documents of the run that the corpus lacks, left out, for example 'lo"},
    ),
    (
        {CORPUS: '{"_id": "e", "text": " "}', RUN: "q1 Q0 e 9 1e-3 bm25"},
        {"evaluate": "1 × documents of the run that are blank, left out, for example 'e' of 'q1'"},
    ),
    ({RUN: "q0 Q0 d0 9 1e-3 bm25"}, {"evaluate": TWICE}),
    ({RUN: "q0\tQ0\td7\t9\t-1.5E+2\t\t"}, {"evaluate": ""}),
    (
        {CORPUS: '{"_id": "d 7/é", "text": "t"}', RUN: "q0\tQ0\td 7/é\t9\t1\tmy tag"},
        {"evaluate": ""},
    ),
    (
        {QRELS: "q8\td0\t1", RUN: "q8 Q0 d0 1 1.5 bm25"},
        {"evaluate": "1 × queries of the run that --queries does not have, left out, for example"},
    ),
    (
        {QRELS: "q8\td0\t1", QUERIES: '{"_id": "q8", "text": "t"}', RUN: "q8 Q0 lost 1 1 bm25"},
        {"evaluate": "1 × queries of the run without a document that can be ranked, left out"},
    ),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_complete_data_is_reported_without_gaps(cli: Run, folder: Path, command: str) -> None:
    code, text = execute(cli, folder, command)
    assert code == 0, text
    assert "left out, for" not in text


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        (command, changes, messages[command])
        for changes, messages in GAPS
        for command in COMMANDS
        if command in messages
    ],
)
def test_every_command_reports_gaps(
    cli: Run, folder: Path, command: str, changes: dict[str, str], message: str
) -> None:
    add(folder, changes)
    code, text = execute(cli, folder, command)
    assert code == 0, text
    assert message in text
    if not message:
        assert "left out, for" not in text


#: Contents of files that do not belong together, and ids of both.
MIXED_UP: list[tuple[dict[str, str], tuple[str, ...], str]] = [
    ({QRELS: "7\td0\t1\n"}, ("mine", "convert"), "found '7' here and 'q0' there"),
    ({QRELS: "7\td0\t1\n"}, ("evaluate",), "run.trec: none of its query ids is in"),
    ({QRELS: "q0\t9\t1\nq1\t8\t1\n"}, ("mine", "convert"), "found '9' here and 'd0' there"),
    ({RUN: "q0 Q0 9 1 2.0 x\n"}, ("evaluate",), "found '9' here and 'd0' there"),
    ({QUERIES: '{"_id": 1, "text": "t"}\n'}, COMMANDS, "found 'q0' here and '1' there"),
    ({QUERIES: '{"_id": 1, "text": " "}\n'}, COMMANDS, "no query is left (1 × blank queries"),
    ({CORPUS: '{"_id": 1, "text": "t"}\n{"_id": 2, "text": "u"}\n'}, COMMANDS, "'1' there; do"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "contents", "problem"),
    [
        (command, contents, problem)
        for contents, commands, problem in MIXED_UP
        for command in commands
    ],
)
def test_files_that_do_not_belong_together(
    cli: Run, folder: Path, command: str, contents: dict[str, str], problem: str
) -> None:
    for name, text in contents.items():
        (folder / name).write_text(text)
    code, text = execute(cli, folder, command)
    assert code == 2
    assert problem in text
    assert not (folder / "output.jsonl").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        (CORPUS, '{"_id": "d0", "text": "another"}', ":9: duplicate passage id 'd0', with"),
        (QUERIES, '{"_id": "q0", "text": "another"}', ":4: duplicate query id 'q0', with"),
        (CORPUS, '{"_id": 1.5, "text": "t"}', ":9: field '_id' is 1.5, expected a text or a whole"),
        (QUERIES, '{"_id": "q9", "text": ["t"]}', ":4: field 'text' is a list, expected a text"),
        (CORPUS, '{"_id": "x", "text": "\\ud83d"}', ":9: a text has an unpaired surrogate"),
        (QRELS, "q0\td0\tInfinity", ":8: the grade 'Infinity' is not a finite number"),
    ],
)
def test_mistakes_are_errors_of_every_command(
    cli: Run, folder: Path, command: str, name: str, line: str, problem: str
) -> None:
    add(folder, {name: line})
    code, text = execute(cli, folder, command)
    assert code == 2
    assert f"{folder / name}{problem}" in text


def test_queries_that_are_documents_as_in_arguana(cli: Run, folder: Path) -> None:
    """As in BEIR, the document that is the query itself is neither ranked nor a negative."""
    document = TEXTS[3]
    add(
        folder,
        {
            CORPUS: json.dumps({"_id": "pro-01a", "title": "A title", "text": document})
            + '\n{"_id": "q1", "text": "only its id is the same"}',
            QUERIES: json.dumps({"_id": "pro-01a", "text": document}),
            QRELS: "pro-01a\td4\t1",
            RUN: "pro-01a Q0 pro-01a 1 9 x\npro-01a Q0 d4 2 8 x\nq1 Q0 q1 3 0.1 x",
        },
    )
    code, text = execute(cli, folder, "evaluate")
    assert code == 0
    assert "1 × queries among their own documents, left out there, for example 'pro-01a'" in text
    assert json.loads((folder / "output.jsonl").read_text())["hit@1"] == 0.5
    for command in ("mine", "convert"):
        code, _ = execute(cli, folder, command)
        groups = [json.loads(line) for line in (folder / "output.jsonl").read_text().splitlines()]
        (group,) = (group for group in groups if group["id"] == "pro-01a")
        assert group["pos"] == [TEXTS[4]]
        assert f"A title {document}" not in group["neg"]
    assert code == 0


def test_judgements_as_json_lines(cli: Run, folder: Path) -> None:
    """As in the data sets of MTEB."""
    lines = (folder / QRELS).read_text().splitlines()[1:]
    outputs = []
    for command in COMMANDS:
        assert execute(cli, folder, command)[0] == 0
        outputs.append((folder / "output.jsonl").read_text())
    (folder / QRELS).unlink()
    names = ("query-id", "corpus-id", "score")
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
    write_lines(folder / "qrels" / "train.jsonl", rows)
    for command, before in zip(COMMANDS, outputs, strict=True):
        assert execute(cli, folder, command)[0] == 0
        assert (folder / "output.jsonl").read_text() == before
