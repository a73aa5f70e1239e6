"""`check`: what it warns about, its exit codes, and the fixed copy."""

import json
from pathlib import Path
from typing import Any

import pytest

from rerank_plugin.errors import OptionError
from rerank_plugin.finetune import check_groups
from rerank_plugin.finetune.data.groups import read_groups

from ..factories import Run, easy_groups, sample_texts, write_lines

TEXTS = sample_texts()


def group(query: str, pos: list[str], neg: list[str], **more: Any) -> dict[str, Any]:
    return {"query": query, "pos": pos, "neg": neg, **more}


def warned(path: Path, eval_path: Path | None = None) -> str:
    """Return the report on data that can be used and has warnings."""
    result = check_groups(data_path=path, eval_data_path=eval_path)
    assert result.is_usable and result.warnings
    return "\n".join(result.lines())


def test_clean_data_has_no_warnings(groups_file: Path, eval_file: Path) -> None:
    result = check_groups(data_path=groups_file, eval_data_path=eval_file)
    assert result.is_usable and not result.warnings
    assert result.groups == 32
    assert "no query is in both the training and the evaluation data" in result.report


def test_fail_on_warning_is_exit_code_3(cli: Run, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [*easy_groups(1)] * 20)
    code, out, err = cli("check", "--data_path", path, "--fail_on_warning")
    assert code == 3 and "--fail_on_warning: 3 warnings" in err
    assert cli("check", "--data_path", path)[:2] == (0, out)


def test_contradictions(tmp_path: Path) -> None:
    a, b, c, d = TEXTS[:4]
    train = write_lines(
        tmp_path / "train.jsonl",
        [
            group("when?", [a], [b, c]),
            group("When?", [d], [f" {a.upper()}", c]),
            group("where?", [b], [c]),
        ],
    )
    dev = write_lines(tmp_path / "dev.jsonl", [group("Where", [d], [b])])
    out = warned(train, dev)
    assert "2 pairs are labelled positive in one group and negative in another" in out
    assert f"{train}:2: 'When?'" in out and f"{train}:3: 'where?'" in out
    assert "1 queries have several groups, up to 2" in out
    assert "1 evaluation queries are training queries: 'where?'" in out


def test_copies_in_scripts_without_spaces(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            group("他在哪里", ["他在北京工作。", "好"], ["否"]),
            group("他 在哪里？", ["好"], ["他在，北京工作"]),
        ],
    )
    assert "1 pairs are labelled positive in one group" in warned(path)


def test_broken_json_is_not_called_something_else(tmp_path: Path) -> None:
    path = tmp_path / "UTF-8.jsonl"
    deep = b"[" * 9000 + b"]" * 9000
    path.write_bytes(b'{"query": %b}\n\xef\xbb\xbf[]\n{"query": "\xff"}\n' % deep)
    result = check_groups(data_path=path)
    assert not result.is_usable
    assert result.problems == {"invalid JSON or not an object": 2, "not UTF-8": 1}


def test_near_duplicates_across_splits(tmp_path: Path) -> None:
    train = write_lines(
        tmp_path / "train.jsonl",
        [
            group("how tall is the mount everest", [TEXTS[0]], [TEXTS[1]]),
            group("what is the capital of france", [TEXTS[2]], [TEXTS[3]]),
        ],
    )
    dev = write_lines(
        tmp_path / "dev.jsonl",
        [
            group("How tall is Mount Everest?", [f"{TEXTS[0]} More."], [TEXTS[4]]),
            group("what is the capital of spain", [TEXTS[5]], [TEXTS[6]]),
        ],
    )
    out = warned(train, dev)
    assert "1 training queries are nearly evaluation queries" in out
    assert "'how tall is the mount everest' is nearly 'How tall is Mount Everest?'" in out
    assert "1 of 2 positives of the evaluation are positives, or nearly so, in training" in out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pos": ["always this"]}, "one passage is a positive in 20 of 20 groups: 'always this'"),
        ({"query": "the same"}, "one query is in 20 of 20 groups: 'the same'"),
        ({"neg": ["never", "n"]}, "one passage is a negative in 20 of 20 groups"),
        (
            {"pos_scores": [0.5], "neg_scores": [0.5] * 3},
            "all teacher scores are equal in 20 of 20 groups",
        ),
        (
            {"pos_scores": [0.1], "neg_scores": [0.5, 0.1, 0.0]},
            "the teacher scores a negative highest in 20 of 20 groups",
        ),
    ],
)
def test_suspicious_constants(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{**record, **change} for record in easy_groups(20)])
    assert expected in warned(path)


def test_the_fixed_copy_is_clean(tmp_path: Path) -> None:
    a, b, c, d = TEXTS[:4]
    scores = {"pos_scores": [1.0, 0.9], "neg_scores": [0.1, 0.2, 0.3]}
    train = write_lines(
        tmp_path / "train.jsonl",
        [
            group("q", [a, f" {a.upper()}"], [b, c, f"{b} "], pos_labels=[2, 1], **scores),
            {**group("Q", [c], [d]), "id": 7, "source": "wiki"},
            {"query": "broken", "pos": []},
            group(
                "s",
                [a, " "],
                [a, "", c],
                neg_scores=[3, 2, 1],
                neg_retrieval_scores=[6, 5, 4],
                pos_labels=[3, 1],
            ),
            group("r", [a], [b, longer := f"{a} Read more on our site today."]),
            group("R", [a], [b, longer]),
            group("only contradicted", [a], [b]),
            group("only contradicted", [b], [a]),
            group("how tall is the mount everest", [a], [b]),
        ],
    )
    dev = write_lines(tmp_path / "dev.jsonl", [group("how tall is mount everest", [a], [d])])
    fixed = tmp_path / "fixed.jsonl"
    options: dict[str, Any] = {"data_path": train, "eval_data_path": dev, "fix": fixed}
    result = check_groups(**options)
    assert not result.is_usable
    assert result.fixed is not None and result.fixed.groups == 4
    out = "\n".join(result.lines())
    assert "  grades in 1 groups; positives: 7 of grade 1, 1 of grade 2" in out
    assert "note: 2 negatives are near-duplicates of positives of their group" in out
    assert [json.loads(line) for line in fixed.read_text("utf-8").splitlines()] == [
        group("q", [a], [b], pos_labels=[2], pos_scores=[1.0], neg_scores=[0.1]),
        {**group("Q", [c], [d]), "id": 7, "source": "wiki"},
        group("s", [a], [c], neg_scores=[1], neg_retrieval_scores=[4], pos_labels=[3]),
        group("r", [a], [b, longer]),
    ]
    for line in (
        "1 × unusable lines left out",
        "1 × unusable lines repaired",
        "2 × copies of a passage of the same group",
        "3 × negatives left out: they are positives of the same query",
        "2 × groups left out: no negative is left",
        "1 × groups left out: they repeat an earlier one",
        "1 × groups left out: their query is, or nearly is, an evaluation query",
    ):
        assert line in out
    result = check_groups(data_path=fixed, eval_data_path=dev)
    assert result.is_usable and not result.warnings
    with pytest.raises(OptionError, match=r"--fix: .*fixed\.jsonl already exists"):
        check_groups(**options)
    assert len(list(read_groups(fixed))) == 4


def test_repaired_lines_do_not_contradict_others(tmp_path: Path) -> None:
    a, b, c = TEXTS[:3]
    records = [group("q", [a], [b, " ", c]), group("q", [b], [c], odd={"s": [float("nan")]})]
    data = write_lines(tmp_path / "train.jsonl", records)
    fixed = tmp_path / "fixed.jsonl"
    result = check_groups(data_path=data, fix=fixed)
    assert result.fixed is not None
    assert result.fixed.changes["fields 'odd' left out: JSON has neither NaN nor Infinity"] == 1
    first, second = [json.loads(line) for line in fixed.read_text("utf-8").splitlines()]
    assert (first, second) == (group("q", [a], [c]), group("q", [b], [c]))
    result = check_groups(data_path=fixed)
    assert result.is_usable and not result.warnings


def test_other_instructions_are_other_questions(tmp_path: Path) -> None:
    a, b = TEXTS[:2]
    fares, dogs = {"instruction": "Find the fares."}, {"instruction": "Find the dogs."}
    lines = [
        group("q", [a], [b]) | fares,
        group("Q", [b], [a]) | dogs,
        group("q", [a], [b]) | dogs,
        group("q", [a], [b]),
    ]
    train = write_lines(tmp_path / "train.jsonl", lines)
    dev = write_lines(tmp_path / "dev.jsonl", [group("q", [a], [b])])
    result = check_groups(data_path=train, eval_data_path=dev)
    out = "\n".join(result.lines())
    # The query alone decides whether data leaks.
    assert "1 evaluation queries are training queries" in out
    assert "2 pairs are labelled positive in one group and negative in another" in out
    assert f"{train}:3" in out and f"{train}:2" not in out
    assert "3 of 4 groups have an instruction" in out
    fixed = tmp_path / "fixed.jsonl"
    write_lines(train, [lines[0], group("q", [a], [b]) | dogs, lines[3], lines[0]])
    check_groups(data_path=train, fix=fixed)
    assert [json.loads(line) for line in fixed.read_text("utf-8").splitlines()] == [
        lines[0],
        group("q", [a], [b]) | dogs,
        lines[3],
    ]


def test_copies_in_a_group_are_noted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [group("q", [TEXTS[0]], ["a dog", "A dog."])])
    report = check_groups(data_path=path).report
    assert "  note: 1 groups hold a passage twice; training uses it once" in report


def test_nothing_is_fixed_without_the_evaluation_data(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", [group("q", [TEXTS[0]], [TEXTS[1]])])
    fixed, lacking = tmp_path / "fixed.jsonl", tmp_path / "dev.jsonl"
    result = check_groups(data_path=train, eval_data_path=lacking, fix=fixed)
    assert result.problems == {"missing file": 1}
    assert result.fixed is None and result.fix_problem == "--eval_data_path cannot be read"
    assert not any("both the training and the evaluation" in line for line in result.report)
    assert not fixed.exists()


def test_a_copy_without_a_group_is_not_written(cli: Run, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "a.jsonl", [group("q", ["p"], ["P"])])
    fixed = tmp_path / "fixed.jsonl"
    code, out, _ = cli("check", "--data_path", data, "--fix", fixed)
    assert code == 2 and f"--fix: not written: no group of {data} is left" in out
    assert not fixed.exists()


def test_a_length_needs_a_model(groups_file: Path) -> None:
    with pytest.raises(OptionError, match="--max_len: requires --model_name_or_path"):
        check_groups(data_path=groups_file, max_len=9)
