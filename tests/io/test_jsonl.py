import gzip
import json
import shlex
from pathlib import Path

import pytest

from rerank_plugin.errors import InputError
from rerank_plugin.io.atomic import write_json
from rerank_plugin.io.jsonl import SkippedLines, input_files, read_lines


def records(path: object) -> list[dict[str, object]]:
    return [line.record() for line in read_lines(str(path))]


def test_reads_files_folders_globs_and_gzip(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"n": 2}\n\n  \n{"n": 3}', encoding="utf-8")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"n": 1}\n')
    (tmp_path / "notes.txt").write_text("not data", encoding="utf-8")
    assert records(tmp_path) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert records(tmp_path / "*.jsonl") == [{"n": 2}, {"n": 3}]
    assert input_files([tmp_path / "b.jsonl", str(tmp_path / "a.*")])[1].name == "a.jsonl.gz"


def test_a_byte_order_mark_and_windows_line_ends_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n{"n": 2}\r\n')
    assert records(path) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"n": 1}\n{"n": \n', "a.jsonl:2: invalid JSON at column"),
        (b'{"n": 1}\n\n[1]\n', "a.jsonl:3: expected one JSON object a line, found a list"),
        (b'{"n": 1}\n{"n": "\xff"}\n', "a.jsonl:2: not UTF-8 (byte 8 of the line)"),
        (b"[" * 100_000, "a.jsonl:1: invalid JSON"),
        (b"", "a.jsonl: the file is empty"),
        (b"\n \n", "a.jsonl: the file is empty"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, raw: bytes, expected: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.jsonl") as error:
        records(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


RECORD = '{"query": "q", "pos": ["p"], "neg": ["n"]}'


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"PAR1\x15\x04", "a Parquet file: for training, convert it with"),
        (b"ARROW1\x00\x00", "an Arrow file: save it as"),
        (b"PK\x03\x04\x14\x00", "a zip archive or an Excel workbook: unpack it, or save it as"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an Excel workbook: save it as CSV UTF-8"),
        (
            gzip.compress(RECORD.encode(), mtime=0),
            "compressed with gzip: its name has to end in .gz",
        ),
        (b"\x28\xb5\x2f\xfd\x00", "compressed with zstd: unpack it"),
        (RECORD.encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        (RECORD.encode("utf-16-le"), "UTF-16 text: save it as UTF-8"),
        (RECORD.encode("utf-16-be"), "UTF-16 text: save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the data: run"),
        (f"[{RECORD}]".encode(), ":1: a JSON array, expected one JSON object a line; for training"),
        (json.dumps([json.loads(RECORD)], indent=1).encode(), ":1: a JSON array"),
        (json.dumps(json.loads(RECORD), indent=1).encode(), ":1: the JSON object continues on the"),
        (b"query,passage,label\na,b,1\n", ":1: a table, as its first line 'query,passage,label'"),
        (b"Query;Passage;Label\na;b;1\n", "--from table --data_path "),
        (b'\xef\xbb\xbf"query"\t"passage"\na\tb\n', ":1: a table, as its first line"),
        (b"<!DOCTYPE html>\n<html>", ":1: HTML or XML, expected one JSON object a line"),
        (RECORD.encode().replace(b"q", b"\0", 1), ":1: invalid JSON at column"),
        (f"{RECORD}\r{RECORD}\r".encode(), ":1: invalid JSON: lines end in a carriage return"),
        ('{"a": "\u00e9"}'.encode("cp1252"), ":1: not UTF-8 (byte 8 of the line): save the file"),
        (b'{"a": 1, "b": 2, "a": 3}', ":1: field 'a' is given twice"),
        (b'{"a": %s}' % (b"9" * 5000), ":1: invalid JSON: Exceeds the limit"),
        (b'{"a": %s1%s}' % (b"[" * 99_999, b"]" * 99_999), ":1: invalid JSON: "),
    ],
)
def test_other_formats_are_recognised_by_their_contents(
    tmp_path: Path, raw: bytes, expected: str
) -> None:
    path = tmp_path / "the data.jsonl"
    packed = tmp_path / "packed.jsonl.gz"
    path.write_bytes(raw)
    packed.write_bytes(gzip.compress(raw))
    for file in (path, packed):
        with pytest.raises(InputError) as error:
            records(file)
        message = str(error.value)
        assert message.startswith(f"{file}:") and "\n" not in message
        assert expected in message
        if "--data_path" in message:
            assert shlex.split(message.partition("rerank-plugin ")[2])[4] == str(file)


@pytest.mark.parametrize(
    "raw",
    [
        '{"a": "\u2028\x85"}\n',
        '{"a": 1}\n\ufeff{"a": 2}\n',
        '\n\n{"a": "\\u0000"}\r\n\r\n',
        '{"a": "' + "x" * 5_000_000 + '"}',
        '{"a": {"b": 1, "b": 2}}',
    ],
)
def test_unusual_but_valid_json_is_read(tmp_path: Path, raw: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw.encode())
    assert all(record.keys() == {"a"} for record in records(path))
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(raw.encode())
    assert records(path) == records(tmp_path / "b.jsonl.gz")


def test_gzip_files_that_are_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b'{"n": 1}\n')
    for raw in (whole + b"rubbish", b'{"n": 1}\n', whole[:-4]):
        path.write_bytes(raw)
        with pytest.raises(InputError, match=r"a\.jsonl\.gz: cannot be read"):
            records(path)
    for raw in (b"", gzip.compress(b""), gzip.compress(b"\n\n")):
        path.write_bytes(raw)
        with pytest.raises(InputError, match=r"a\.jsonl\.gz: the file is empty"):
            records(path)
    path.write_bytes(whole + whole + bytes(512))
    assert records(path) == [{"n": 1}, {"n": 1}]


def test_missing_paths_and_broken_gzip(tmp_path: Path) -> None:
    for missing in (tmp_path / "no.jsonl", tmp_path / "no*.jsonl"):
        with pytest.raises(InputError, match="no such file"):
            records(missing)
    with pytest.raises(InputError, match=r"the folder has no \.jsonl"):
        records(tmp_path)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1}\n' * 1000)[:-30])
    with pytest.raises(InputError, match="cannot be read"):
        records(tmp_path / "cut.jsonl.gz")


def test_skipped_lines_are_written_down(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": \xff}\n')
    skipped = SkippedLines(tmp_path / "skipped.jsonl")
    assert not skipped.path.exists()
    (line,) = read_lines(path)
    skipped.add(line, line.error("why"))
    skipped.add(line, line.error("again"))
    written = [json.loads(text) for text in skipped.path.read_text("utf-8").splitlines()]
    assert [record["line"] for record in written] == [1, 1]
    assert written[0]["problem"] == f"{path}:1: why"
    assert skipped.count == 2


def test_json_is_written_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "é"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"text": "é"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
