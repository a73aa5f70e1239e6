import errno
import gzip
import json
import os
import pickle
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.finetune.data import index_cache
from rerank_plugin.finetune.data.dataset import GroupDataset
from rerank_plugin.finetune.data.groups import Group, read_groups
from rerank_plugin.finetune.data.index_cache import (
    IndexCache,
    cache_folder,
    temporary_folder,
    warn_of_no_cache,
)
from rerank_plugin.finetune.text.normalize import text_digest
from rerank_plugin.io.jsonl import DataPath, SkippedLines

from ..factories import easy_groups, mount, write_lines

GOOD = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}
SCORED = {**GOOD, "pos_scores": [3, 2.5], "pos": ["p", "o"], "neg_scores": [2.0, -1e300]}


def build(path: DataPath, cache: Path, skipped: SkippedLines | None = None) -> GroupDataset:
    return GroupDataset.build(path, cache, skipped)


def settle(path: Path) -> None:
    """Set an old modification time: that of a new file is not trusted."""
    then = time.time_ns() - 10**10
    os.utime(path, ns=(then, then))


def entries(cache: Path) -> dict[str, int]:
    """Return the entries of a cache, and when their rows were written."""
    return {entry.name: (entry / "good.rows").stat().st_mtime_ns for entry in cache.iterdir()}


TEXTS = st.text(max_size=8)
RECORDS = st.fixed_dictionaries(
    {"query": TEXTS, "pos": st.lists(TEXTS, max_size=3), "neg": st.lists(TEXTS, max_size=3)},
    optional={
        "id": st.integers() | TEXTS,
        "pos_scores": st.lists(st.floats() | st.integers(), max_size=3),
        "neg_scores": st.lists(st.floats() | st.integers(), max_size=3),
        "instruction": st.none() | TEXTS,
        "more": st.none() | st.floats() | TEXTS,
    },
)
LINES = st.one_of(
    st.tuples(RECORDS, st.booleans()).map(
        lambda pair: json.dumps(pair[0], ensure_ascii=pair[1]).encode(errors="surrogatepass")
    ),
    st.sampled_from([b"", b" \t", b"\x0c", b"{", b"3", b'"\xff"', json.dumps(SCORED).encode()]),
)


@given(
    st.lists(st.lists(LINES, min_size=1, max_size=6), min_size=1, max_size=3),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_the_index_returns_the_groups_of_plain_reading(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[bytes]],
    end: bytes,
    packed: bool,
    mark: bool,
) -> None:
    folder = tmp_path_factory.mktemp("data")
    for number, lines in enumerate(files):
        contents = (b"\xef\xbb\xbf" if mark else b"") + end.join(lines)
        name = f"{number}.jsonl"
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(contents))
        else:
            (folder / name).write_bytes(contents)
    plain_skipped, skipped = SkippedLines(folder / "plain"), SkippedLines(folder / "indexed")
    try:
        expected = list(read_groups(folder, plain_skipped))
    except InputError as error:
        with pytest.raises(InputError) as indexed_error:
            build(folder, folder / "cache", skipped)
        assert str(indexed_error.value).replace("indexed", "plain") == str(error)
        return
    for _ in range(2):
        skipped.count = 0
        groups = build(folder, folder / "cache", skipped)
        assert list(groups) == expected
        assert groups.query_hashes.tolist() == [text_digest(g.query) for g in expected]
        gaps = [group.teacher_gap for group in expected]
        np.testing.assert_array_equal(groups.teacher_gaps, gaps)
        assert skipped.count == plain_skipped.count
        if skipped.count:
            assert skipped.path.read_bytes() == plain_skipped.path.read_bytes()


def test_the_second_build_does_not_read_the_data(tmp_path: Path) -> None:
    path, cache = write_lines(tmp_path / "a.jsonl", easy_groups(5)), tmp_path / "cache"
    settle(path)
    first = list(build(path, cache))
    before = entries(cache), path.stat()
    # Other contents with the same size and time: reading them would be an error.
    path.write_bytes(b"x" * before[1].st_size)
    os.utime(path, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    assert len(build(path, cache)) == len(first)
    assert entries(cache) == before[0]


def test_a_moved_file_is_found_by_its_contents(tmp_path: Path) -> None:
    path, cache = write_lines(tmp_path / "a.jsonl", easy_groups(5)), tmp_path / "cache"
    first = build(path, cache)
    before = entries(cache)
    moved = build(path.rename(tmp_path / "b.jsonl"), cache)
    assert list(moved) == list(first)
    assert moved.fingerprint == first.fingerprint
    assert entries(cache) == before


@pytest.mark.parametrize("settled", [True, False])
def test_a_changed_file_is_indexed_anew(tmp_path: Path, settled: bool) -> None:
    path, cache = write_lines(tmp_path / "a.jsonl", [GOOD]), tmp_path / "cache"
    if settled:
        settle(path)
    first = build(path, cache)
    # Of the same size, and perhaps in the same tick of the clock.
    write_lines(path, [{**GOOD, "query": "r"}])
    second = build(path, cache)
    assert [group.query for group in second] == ["r"]
    assert first.fingerprint != second.fingerprint
    assert len(entries(cache)) == 2


def test_several_files_have_indices_of_their_own(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = [write_lines(tmp_path / f"{i}.jsonl", easy_groups(3, start=i)) for i in range(3)]
    build(paths[:2], cache)
    before = entries(cache)
    groups = build(paths, cache)
    assert before.items() < entries(cache).items()
    assert [groups[i] for i in (8, 0, 4)] == [list(groups)[i] for i in (8, 0, 4)]
    assert list(groups.select([7, 2]).select(np.array([1]))) == [groups[2]]
    assert len({build(some, cache).fingerprint for some in (paths, paths[::-1], paths[0])}) == 3
    with pytest.raises(IndexError):
        groups[9]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_bad_line_is_named_and_can_be_skipped(tmp_path: Path, name: str) -> None:
    lines = [json.dumps(record).encode() for record in (GOOD, {**GOOD, "pos": []}, GOOD)]
    contents = b"\n\n".join(lines)
    path, cache = tmp_path / name, tmp_path / "cache"
    path.write_bytes(gzip.compress(contents) if name.endswith("gz") else contents)
    expected = f"{path}:3: field 'pos' is empty, expected at least one text"
    for _ in range(2):
        with pytest.raises(InputError) as error:
            build(path, cache)
        assert str(error.value) == expected
        # A line that was skipped once is still an error without skipping.
        skipped = SkippedLines(tmp_path / "skipped.jsonl")
        assert len(build(path, cache, skipped)) == 2
        assert json.loads(skipped.path.read_text())["problem"] == expected
    assert not list(cache.glob(".*"))


def lengths(groups: GroupDataset) -> list[int]:
    return [len(group.documents) for group in groups]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_groups_can_be_sent_to_other_processes(tmp_path: Path, method: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", easy_groups(50))
    groups = build(path, tmp_path / "cache").select(range(10, 40))
    assert len(pickle.dumps(groups)) < 5000
    with get_context(method).Pool(2) as pool:
        assert pool.map(lengths, [groups] * 4) == [lengths(groups)] * 4


def test_a_file_that_changes_under_a_run_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", easy_groups(5))
    groups = build(path, tmp_path / "cache")
    expected = groups[1]
    write_lines(tmp_path / "b.jsonl", [GOOD]).replace(path)
    # The open file is still the one that was indexed.
    assert groups[1] == expected
    again = build(path, tmp_path / "cache")
    assert again[0].query == "q"
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="was changed while it was in use"):
        again[0]


def test_old_indices_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    paths = [write_lines(tmp_path / f"{i}.jsonl", easy_groups(2, start=i)) for i in range(3)]
    old, unused, used = (build(path, cache).files[0].entry for path in paths)
    (cache / ".part-x").mkdir()
    days = [40, 2, 0]
    for entry, age in zip((old, unused, used), days, strict=True):
        os.utime(entry, (time.time() - age * 86_400,) * 2)
    IndexCache(cache)
    assert set(cache.iterdir()) == {unused, used, cache / ".part-x"}
    os.utime(cache / ".part-x", (time.time() - 2 * 86_400,) * 2)
    monkeypatch.setattr(index_cache, "KEEP_BYTES", 1)
    IndexCache(cache)
    assert list(cache.iterdir()) == [used]


def test_the_folder_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_PLUGIN_CACHE", str(tmp_path))
    assert cache_folder().parent == tmp_path
    monkeypatch.delenv("RERANK_PLUGIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().parent == tmp_path / "rerank-plugin"


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a passwd entry, as containers have them."""

    pwd = pytest.importorskip("pwd")

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("RERANK_PLUGIN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("no_home")
def test_without_a_home_folder_indices_are_temporary(tmp_path: Path) -> None:
    warn_of_no_cache.cache_clear()
    path = write_lines(tmp_path / "a.jsonl", easy_groups(3))
    groups = GroupDataset.build(str(path), cache_folder(), None)
    assert len(groups) == 3 and groups.files[0].entry.parent == temporary_folder()


class Unwritable:
    """Ways in which a cache cannot be written."""

    @staticmethod
    def below_a_file(folder: Path) -> Path:
        (folder / "file").write_text("")
        return folder / "file" / "cache"

    @staticmethod
    def full_disk(folder: Path) -> Path:
        mount("tmpfs", folder, "-o", "size=4k")
        (folder / "all").write_bytes(bytes(4096))
        return folder

    @staticmethod
    def read_only(folder: Path) -> Path:
        mount("tmpfs", folder, "-o", "ro")
        return folder

    @staticmethod
    def read_only_parent(folder: Path) -> Path:
        return Unwritable.read_only(folder) / "deeper" / "cache"


WAYS = [name for name in vars(Unwritable) if not name.startswith("_")]


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_that_cannot_be_written_is_one_warning(
    tmp_path: Path, mounts: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_no_cache.cache_clear()
    path = write_lines(tmp_path / "a.jsonl", easy_groups(3))
    cache = getattr(Unwritable, way)(mounts)
    for _ in range(2):
        assert len(build(path, cache)) == 3
    (line,) = caplog.messages
    assert str(cache) in line and "set RERANK_PLUGIN_CACHE" in line


def test_a_read_only_cache_is_read(tmp_path: Path, mounts: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", easy_groups(3))
    mount("tmpfs", mounts)
    groups = build(path, mounts)
    mount("tmpfs", mounts, "-o", "remount,ro")
    assert build(path, mounts).files[0].entry == groups.files[0].entry


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EROFS])
def test_file_times_that_cannot_be_set_are_no_error(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    path = write_lines(tmp_path / "a.jsonl", easy_groups(3))
    monkeypatch.setattr(os, "utime", refuse)
    assert len(build(path, tmp_path / "cache")) == 3


def scored(tmp_path: Path, *changes: dict[str, Any]) -> GroupDataset:
    path = write_lines(tmp_path / "a.jsonl", [{**SCORED, **change} for change in changes])
    return build(path, tmp_path / "cache")


def test_missing_teacher_scores_name_the_option_and_the_first_line(tmp_path: Path) -> None:
    groups = scored(tmp_path, {}, {"pos_scores": None}, {"neg_scores": None})
    groups.select([0]).require_teacher("loss", "margin_mse")
    with pytest.raises(OptionError) as error:
        groups.require_teacher("loss", "margin_mse")
    assert str(error.value) == (
        "--loss: margin_mse requires teacher scores: 2 of 3 groups have no 'pos_scores' or "
        f"'neg_scores', the first is {tmp_path / 'a.jsonl'}:2"
    )
    with pytest.raises(OptionError, match="--teacher_margin: 1 requires teacher scores: 2 of 3"):
        groups.without_false_negatives(1)


def test_negatives_that_score_like_the_positives_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The worst positive has 2.5.
    groups = scored(
        tmp_path, {"neg_scores": [2.0, 0.5]}, {"neg_scores": [2.4, 2.6]}, {"neg_scores": [-1, 2.6]}
    )
    kept = groups.without_false_negatives(0.5)
    assert "--teacher_margin 0.5 leaves 1 of 3 training groups" in caplog.text
    assert [(group.neg, group.neg_scores) for group in kept] == [
        (["n", "m"], [2.0, 0.5]),
        (["n"], [-1]),
    ]
    assert [group.neg for group in kept.select([1])] == [["n"]]
    assert [group.neg for group in groups.without_false_negatives(-0.25)] == [["n", "m"]] * 3
    with pytest.raises(OptionError, match="--teacher_margin: 9 leaves no group with a negative"):
        groups.without_false_negatives(9)


FINITE = st.floats(-1e6, 1e6)


@given(st.lists(FINITE, min_size=1), st.lists(FINITE, min_size=1), st.floats(-10, 10))
def test_a_group_keeps_a_negative_if_its_teacher_gap_reaches_the_margin(
    pos: list[float], neg: list[float], margin: float
) -> None:
    group = Group("q", ["p"] * len(pos), ["n"] * len(neg), pos, neg)
    left = group.without_false_negatives(margin)
    assert bool(left.neg) == (group.teacher_gap >= margin)
    assert left.neg_scores is not None
    assert len(left.neg) == len(left.neg_scores)
    assert all(score <= min(pos) - margin + 1e-6 for score in left.neg_scores)
