"""`check`: what it warns about, its exit codes, and the fixed copy."""

import json
from pathlib import Path
from typing import Any

import pytest

from rerank_plugin.finetune.data.groups import read_groups

from ..factories import Run, easy_groups, sample_texts, write_lines

TEXTS = sample_texts()


def group(query: str, pos: list[str], neg: list[str], **more: Any) -> dict[str, Any]:
    return {"query": query, "pos": pos, "neg": neg, **more}


def warned(cli: Run, *arguments: object) -> str:
    code, out, err = cli("check", *arguments, "--fail_on_warning")
    assert code == 3, out + err
    assert "--fail_on_warning" in err
    assert cli("check", *arguments)[0] == 0
    return out


def test_clean_data_has_no_warnings(cli: Run, groups_file: Path, eval_file: Path) -> None:
    code, out, _ = cli(
        "check", "--data_path", groups_file, "--eval_data_path", eval_file, "--fail_on_warning"
    )
    assert code == 0, out
    assert "warning:" not in out
    assert "queries: Latin 100.0%" in out
    assert "no query stands on both sides" in out


def test_contradictions(cli: Run, tmp_path: Path) -> None:
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
    out = warned(cli, "--data_path", train, "--eval_data_path", dev)
    assert "2 pairs are right in one place, wrong in another" in out
    assert f"{train}:2: 'When?'" in out and f"{train}:3: 'where?'" in out
    assert "1 queries stand in several groups, up to 2" in out
    assert "1 evaluation queries are training queries: 'where?'" in out


def test_copies_in_scripts_without_spaces(cli: Run, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            group("他在哪里", ["他在北京工作。", "好"], ["否"]),
            group("他 在哪里？", ["好"], ["他在，北京工作"]),
        ],
    )
    assert "1 pairs are right in one place, wrong in another" in warned(cli, "--data_path", path)


def test_broken_json_is_not_called_something_else(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "UTF-8.jsonl"
    deep = b"[" * 9000 + b"]" * 9000
    path.write_bytes(b'{"query": %b}\n\xef\xbb\xbf[]\n{"query": "\xff"}\n' % deep)
    code, out, _ = cli("check", "--data_path", path)
    assert code == 2
    assert "2 × broken JSON or no object" in out and "1 × not UTF-8" in out


def test_near_duplicates_across_splits(cli: Run, tmp_path: Path) -> None:
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
    out = warned(cli, "--data_path", train, "--eval_data_path", dev)
    assert "1 training queries are nearly evaluation queries" in out
    assert "'how tall is the mount everest' is nearly 'How tall is Mount Everest?'" in out
    assert "1 of 2 positives of the evaluation are positives, or nearly so, in training" in out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pos": ["always this"]}, "one passage is right in 20 of 20 groups: 'always this'"),
        ({"query": "the same"}, "one query stands in 20 of 20 groups: 'the same'"),
        ({"neg": ["never", "n"]}, "one passage is wrong in 20 of 20 groups"),
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
def test_suspicious_constants(
    cli: Run, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{**record, **change} for record in easy_groups(20)])
    assert expected in warned(cli, "--data_path", path)


def test_scripts_are_told(cli: Run, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        [group("什么时候", ["中午开船。"], ["狗"]), group("when", ["中午开船。"], ["dogs"])],
    )
    code, out, _ = cli("check", "--data_path", path)
    assert code == 0
    assert "queries: Han 50.0%, Latin 50.0%" in out
    assert "1 groups have query and positive in two scripts" in out


def test_the_fixed_copy_is_clean(cli: Run, tmp_path: Path) -> None:
    a, b, c, d = TEXTS[:4]
    scores = {"pos_scores": [1.0, 0.9], "neg_scores": [0.1, 0.2, 0.3]}
    train = write_lines(
        tmp_path / "train.jsonl",
        [
            group("q", [a, f" {a.upper()}"], [b, c, f"{b} "], **scores),
            {**group("Q", [c], [d]), "id": 7, "source": "wiki"},
            {"query": "broken", "pos": []},
            group("s", [a, " "], [a, "", c], neg_scores=[3, 2, 1]),
            group("r", [a], [b, longer := f"{a} Read more on our site today."]),
            group("R", [a], [b, longer]),
            group("only contradicted", [a], [b]),
            group("only contradicted", [b], [a]),
            group("how tall is the mount everest", [a], [b]),
        ],
    )
    dev = write_lines(tmp_path / "dev.jsonl", [group("how tall is mount everest", [a], [d])])
    fixed = tmp_path / "fixed.jsonl"
    options = ("check", "--data_path", train, "--eval_data_path", dev, "--fix", fixed)
    code, out, _ = cli(*options)
    assert code == 2
    assert f"{fixed}: 4 groups" in out
    assert "note: 2 negatives nearly are positives of their group" in out
    assert [json.loads(line) for line in fixed.read_text("utf-8").splitlines()] == [
        group("q", [a], [b], pos_scores=[1.0], neg_scores=[0.1]),
        {**group("Q", [c], [d]), "id": 7, "source": "wiki"},
        group("s", [a], [c], neg_scores=[1]),
        group("r", [a], [b, longer]),
    ]
    for line in (
        "1 × unusable lines left out",
        "1 × unusable lines mended",
        "2 × copies of a passage in the same group",
        "3 × negatives left out: they are positives of the same query",
        "2 × groups left out: no negative is left",
        "1 × groups left out: the same group came before",
        "1 × groups left out: their query is nearly one of the evaluation's",
    ):
        assert line in out
    code, out, _ = cli("check", "--data_path", fixed, "--eval_data_path", dev, "--fail_on_warning")
    assert code == 0, out
    code, _, err = cli(*options)
    assert code == 2
    assert "--fix:" in err and "fixed.jsonl exists" in err
    assert len(list(read_groups(fixed))) == 4


def test_mended_lines_do_not_contradict_others(cli: Run, tmp_path: Path) -> None:
    a, b, c = TEXTS[:3]
    records = [group("q", [a], [b, " ", c]), group("q", [b], [c], odd={"s": [float("nan")]})]
    data = write_lines(tmp_path / "train.jsonl", records)
    fixed = tmp_path / "fixed.jsonl"
    _, out, _ = cli("check", "--data_path", data, "--fix", fixed)
    assert "1 × fields 'odd' with NaN or Infinity, which JSON has not, left out" in out
    first, second = [json.loads(line) for line in fixed.read_text("utf-8").splitlines()]
    assert (first, second) == (group("q", [a], [c]), group("q", [b], [c]))
    code, out, _ = cli("check", "--data_path", fixed)
    assert code == 0 and "right in one place" not in out


def test_copies_in_a_group_are_told(cli: Run, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [group("q", [TEXTS[0]], ["a dog", "A dog."])])
    assert "note: 1 groups hold a passage twice" in cli("check", "--data_path", path)[1]


def test_nothing_is_fixed_without_the_evaluation_data(cli: Run, tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", [group("q", [TEXTS[0]], [TEXTS[1]])])
    fixed, lacking = tmp_path / "fixed.jsonl", tmp_path / "dev.jsonl"
    code, out, _ = cli("check", "--data_path", train, "--eval_data_path", lacking, "--fix", fixed)
    assert code == 2
    assert "1 × missing file" in out and "--fix: not written" in out
    assert "stands on both sides" not in out
    assert not fixed.exists()


def test_a_length_needs_a_model(cli: Run, groups_file: Path) -> None:
    code, _, err = cli("check", "--data_path", groups_file, "--max_len", 9)
    assert code == 2
    assert "--max_len: counts tokens of a --model_name_or_path" in err
