import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugin.errors import InputError
from rerank_plugin.finetune.data.dataset import GroupDataset
from rerank_plugin.finetune.data.groups import Group, find_problems, read_groups
from rerank_plugin.finetune.data.writer import group_line
from rerank_plugin.finetune.text.normalize import text_key
from rerank_plugin.io.jsonl import SkippedLines

from ..factories import write_lines

GOOD = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}


def test_reads_groups_of_different_sizes(tmp_path: Path) -> None:
    scored = {**GOOD, "pos_scores": [2], "neg_scores": [0.5, -1], "id": 7}
    path = write_lines(
        tmp_path / "a.jsonl", [GOOD, {"query": "q", "pos": ["p", "o"], "neg": ["n"]}, scored]
    )
    first, second, third = read_groups(path)
    assert first == Group("q", ["p"], ["n", "m"])
    assert second.labels == [1, 1, 0]
    assert second.documents == ["p", "o", "n"]
    assert (third.pos_scores, third.neg_scores, third.id) == ([2], [0.5, -1], "7")


def test_positives_may_have_grades(tmp_path: Path) -> None:
    graded = {"query": "q", "pos": ["a", "b", "c"], "neg": ["n"], "pos_labels": [3, 1, 2.0]}
    plain = {**GOOD, "labels": [1, 0, 0]}
    (group, other) = read_groups(write_lines(tmp_path / "a.jsonl", [graded, plain]))
    assert group.labels == [3, 1, 2, 0]
    assert all(type(label) is int for label in group.labels)
    assert other.labels == [1, 0, 0]
    assert json.loads(group_line(group)) == graded
    kept = group.keep("pos", [True, False, True]).keep("neg", [True])
    assert (kept.pos, kept.pos_labels) == (["a", "c"], [3, 2])
    path = write_lines(tmp_path / "b.jsonl", [json.loads(group_line(kept))])
    assert GroupDataset.build(path, tmp_path / "cache", None)[0] == kept


def test_a_group_may_have_an_instruction(tmp_path: Path) -> None:
    given = ["Find the fares.", " ", None]
    path = write_lines(tmp_path / "a.jsonl", [{**GOOD, "instruction": text} for text in given])
    groups = list(read_groups(path))
    assert [group.instruction for group in groups] == ["Find the fares.", "", ""]
    assert [json.loads(group_line(group)) for group in groups] == [
        {**GOOD, "instruction": "Find the fares."},
        GOOD,
        GOOD,
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"query": None}, "field 'query' is null, expected a text"),
        ({"query": 3}, "field 'query' is a number, expected a text"),
        ({"query": " \t"}, "field 'query' is blank"),
        ({"pos": []}, "field 'pos' is empty"),
        ({"pos": "p"}, "field 'pos' is a string, expected a list of texts"),
        ({"pos": ["p", 1]}, "pos[1] is a number"),
        ({"pos": [" "]}, "pos[0] is blank"),
        ({"neg": []}, "field 'neg' is empty"),
        ({"neg": None}, "field 'neg' is null"),
        ({"neg": [{"text": "n"}]}, "neg[0] is an object"),
        ({"neg": ["n", "p"]}, "neg[1] is in 'pos' too"),
        ({"pos_scores": [1, 2]}, "field 'pos_scores' has 2 numbers for 1 texts"),
        ({"neg_scores": "high"}, "'neg_scores' is a string, expected a list of finite numbers"),
        ({"pos_scores": ["0.5"]}, "pos_scores[0] is '0.5', expected a finite number"),
        ({"pos_scores": [None]}, "pos_scores[0] is null, expected a finite number"),
        ({"neg_scores": [1, float("nan")]}, "neg_scores[1] is nan, expected a finite number"),
        ({"neg_retrieval_scores": [1]}, "'neg_retrieval_scores' has 1 numbers for 2 texts"),
        ({"neg_scores": [True, 10**400]}, "neg_scores[0] is True, expected a finite number"),
        ({"pos_labels": [1, 2]}, "field 'pos_labels' has 2 numbers for 1 texts"),
        ({"pos_labels": [0]}, "pos_labels[0] is 0, expected a whole number from 1 to 10"),
        ({"pos_labels": [11]}, "pos_labels[0] is 11, expected a whole number from 1 to 10"),
        ({"pos_labels": [1.5]}, "pos_labels[0] is 1.5, expected a whole number"),
        ({"pos_labels": ["2"]}, "pos_labels[0] is '2', expected a whole number"),
        ({"pos_labels": [True]}, "pos_labels[0] is True, expected a whole number"),
        ({"pos_labels": 2}, "'pos_labels' is a number, expected a list of whole numbers from 1 to"),
        ({"labels": [3, 0, 0]}, "field 'labels' is not read: write the grades of 'pos' as 'pos_l"),
        ({"grades": [2]}, "field 'grades' is not read: write the grades of 'pos' as 'pos_labels'"),
        ({"query": ["q"]}, "field 'query' is a list, expected a text"),
        ({"pos": [["p"]]}, "pos[0] is a list, expected a text"),
        ({"neg": {"text": "n"}}, "field 'neg' is an object, expected a list of texts"),
        ({"id": 1.5}, "field 'id' is a number, expected a text or a whole number"),
        ({"id": True}, "field 'id' is a boolean"),
        ({"pos": ["p", "\ud800"]}, "a text has an unpaired surrogate"),
        ({"id": [1]}, "field 'id' is a list"),
        ({"instruction": ["i"]}, "field 'instruction' is a list, expected a text"),
        ({"instruction": "\ud800"}, "a text has an unpaired surrogate"),
    ],
)
def test_a_bad_line_names_file_line_and_field(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [GOOD, {**GOOD, **change}])
    with pytest.raises(InputError) as error:
        list(read_groups(path))
    assert str(error.value).startswith(f"{path}:2: ")
    assert expected in str(error.value)


@pytest.mark.parametrize("name", ["query", "pos", "neg"])
def test_a_missing_field(tmp_path: Path, name: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{key: GOOD[key] for key in GOOD if key != name}])
    with pytest.raises(InputError, match=f":1: field '{name}' is missing"):
        list(read_groups(path))


CONVERT = "rerank-plugin convert --from"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"query": "q", "positive": ["p"], "negative": ["n"]}, "rename 'positive' to 'pos', 'neg"),
        ({"Query": "q", "Pos": ["p"], "Neg": ["n"]}, "rename 'Query' to 'query', 'Pos' to 'pos'"),
        ({"query": "q", "pos_doc": ["p"], "neg": ["n"]}, "rename 'pos_doc' to 'pos'"),
        ({"question": "q", "pos": ["p"], "hard_negatives": ["n"]}, "'hard_negatives' to 'neg'"),
        ({"query": "q", "response": "p", "rejected": "n"}, f"{CONVERT} sentence-transformers"),
        ({"anchor": "q", "positive": "p", "negative": "n"}, f"{CONVERT} sentence-transformers"),
        ({"query": "q", "pos": "p", "neg": "n"}, f"{CONVERT} sentence-transformers"),
        ({"query": "q", "docs": ["p", "n"], "labels": [1, 0]}, f"{CONVERT} sentence-transformers"),
        ({"query": "q", "positive_passages": [], "negative_passages": []}, f"{CONVERT} tevatron"),
        ({"query": "q", "passages": {"is_selected": [1]}}, f"{CONVERT} msmarco"),
        ({"query": "q", "passage": "p", "label": 1}, f"{CONVERT} table"),
        ({"query": "q", "pos": ["p"]}, f"{CONVERT} flagembedding"),
        ({"a": 1, "b\ud800": 2}, "an unpaired surrogate"),
        ({"a": 1, "\u2028": 2}, r"the fields are 'a', '\u2028'"),
    ],
)
def test_records_of_other_formats_are_recognised(
    tmp_path: Path, record: dict[str, Any], expected: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [record])
    with pytest.raises(InputError) as error:
        list(read_groups(path))
    assert expected in str(error.value)


@pytest.mark.parametrize("field", ["query", "pos", "neg"])
def test_a_repeated_field_is_an_error(tmp_path: Path, field: str) -> None:
    path = tmp_path / "a.jsonl"
    other = json.dumps({field: GOOD[field]})
    path.write_text(f"{json.dumps(GOOD)[:-1]}, {other[1:]}\n", encoding="utf-8")
    with pytest.raises(InputError, match=f":1: field '{field}' is given twice"):
        list(read_groups(path))
    # A text that is called as a field is none.
    (group,) = read_groups(write_lines(path, [{**GOOD, "pos": ["query", "pos", "neg"]}]))
    assert group.pos == ["query", "pos", "neg"]


def test_bad_lines_can_be_skipped(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [GOOD, {**GOOD, "pos": []}, GOOD])
    skipped = SkippedLines(tmp_path / "skipped.jsonl")
    assert len(list(read_groups(path, skipped))) == 2
    assert skipped.count == 1
    nothing = write_lines(tmp_path / "b.jsonl", [{}])
    with pytest.raises(InputError, match="no usable group"):
        list(read_groups(nothing, skipped))


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["query", "pos", "neg", "pos_scores", "neg_scores", "pos_labels", "labels", "id", "instruction"]
)


@given(st.dictionaries(NAMES, VALUES))
def test_any_record_is_a_group_or_has_a_problem(record: dict[str, object]) -> None:
    problems = find_problems(record)
    if problems:
        assert all("\n" not in problem.message for problem in problems)
    else:
        group = Group(record["query"], record["pos"], record["neg"])  # type: ignore[arg-type]
        assert group.query.strip() and group.pos and group.neg
        assert not set(group.pos) & set(group.neg)
        json.dumps(record)


def test_the_same_query_in_another_case_width_or_punctuation() -> None:
    assert text_key("  What IS\tＡ ferry ") == text_key("what is a ferry")
    assert text_key("北京 在哪里？") == text_key("北京在哪里")
    assert text_key("When does it sail?") == text_key("when does it sail")
    assert text_key("What is C#?") != text_key("What is C?")
