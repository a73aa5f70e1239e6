import gzip
import json
from pathlib import Path

import pytest

from rerank_plugin.errors import InputError
from rerank_plugin.jsonl import SkippedLines, input_files, read_lines, write_json


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


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n{"n": 2}\r\n')
    assert records(path) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"n": 1}\n{"n": \n', "a.jsonl:2: broken JSON at column"),
        (b'{"n": 1}\n\n[1]\n', "a.jsonl:3: expected one JSON object a line, found a list"),
        (b'{"n": 1}\n{"n": "\xff"}\n', "a.jsonl:2: not UTF-8 (byte 8 of the line)"),
        (b"[" * 100_000, "a.jsonl:1: broken JSON"),
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


def test_missing_paths_and_broken_gzip(tmp_path: Path) -> None:
    for missing in (tmp_path / "no.jsonl", tmp_path / "no*.jsonl"):
        with pytest.raises(InputError, match="no such file"):
            records(missing)
    with pytest.raises(InputError, match=r"holds no \.jsonl"):
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
