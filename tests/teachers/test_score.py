"""Teacher scores from local models."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_plugin import Reranker
from rerank_plugin.errors import InputError
from rerank_plugin.finetune import score_groups
from rerank_plugin.finetune.data.groups import Group, read_groups
from rerank_plugin.finetune.teachers.candidates import relabelled, stratified, thinned

from ..factories import Run, build_model, easy_groups, write_lines


def expected(model: Path, groups: list[dict[str, Any]]) -> list[list[float]]:
    reranker = Reranker(model, dtype="float32", device="cpu")
    return [
        reranker.logits([(g["query"], text) for text in [*g["pos"], *g["neg"]]]).tolist()
        for g in groups
    ]


def test_groups_get_the_logits_of_a_model(cli: Run, tiny_model: Path, tmp_path: Path) -> None:
    groups = [{**group, "id": str(i), "neg_scores": None} for i, group in enumerate(easy_groups(6))]
    data, output = write_lines(tmp_path / "a.jsonl", groups), tmp_path / "b.jsonl"
    command = ("score", "--teacher", tiny_model, "--data_path", data, "--output", output)
    code, out, err = cli(*command, "--dtype", "float32", "--device", "cpu")
    assert code == 0, err
    assert f"{output}: 6 groups, 24 passages" in out
    assert "--loss kl_divergence" in err
    scored = list(read_groups(output))
    assert [group.id for group in scored] == [group["id"] for group in groups]
    for group, logits in zip(scored, expected(tiny_model, groups), strict=True):
        assert group.teacher == pytest.approx(logits, abs=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl"}
    code, _, err = cli(*command)
    assert code == 2 and "already exists" in err


def test_several_teachers_are_averaged_on_one_scale(tiny_model: Path, tmp_path: Path) -> None:
    groups = easy_groups(5)
    data, output = write_lines(tmp_path / "a.jsonl", groups), tmp_path / "b.jsonl"
    models = [tiny_model, build_model(tmp_path / "other", "electra")]
    score_groups(
        teacher=[str(model) for model in models],
        data_path=data,
        output=output,
        dtype="float32",
        device="cpu",
    )
    raw = np.array([np.concatenate(expected(model, groups)) for model in models])
    deviations, means = raw.std(1, keepdims=True), raw.mean(1, keepdims=True)
    average = ((raw - means) / deviations).mean(0) * deviations.mean() + means.mean()
    scores = [score for group in read_groups(output) for score in group.teacher or []]
    assert scores == pytest.approx(average.tolist(), abs=2e-3)


def test_a_killed_command_resumes_and_scores_nothing_twice(
    cli: Run, tiny_model: Path, tmp_path: Path
) -> None:
    data, output = write_lines(tmp_path / "a.jsonl", easy_groups(40)), tmp_path / "b.jsonl"
    command = ["score", "--teacher", tiny_model, "--data_path", data, "--output", output]
    program = (
        "import os, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from rerank_plugin.cli.main import main\n"
        "from rerank_plugin.finetune.teachers import teacher\n"
        "teacher.PAIRS_AT_ONCE, logits, calls = 16, teacher.Reranker.logits, []\n"
        "def dies(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return logits(*arguments)\n"
        "teacher.Reranker.logits = dies\n"
        "main(sys.argv[1:])\n"
    )
    killed = [sys.executable, "-c", program, *map(str, command)]
    assert subprocess.run(killed, capture_output=True, check=False).returncode == -signal.SIGKILL
    part = tmp_path / "b.jsonl.scores.part"
    assert part.read_text("utf-8").count("\n") == 12
    with part.open("a") as file:
        file.write('{"teacher": 0, "gro')
    code, _, err = cli(*command, "--max_length", 20)
    assert code == 2 and "another run (other data or options)" in err
    code, _, err = cli(*command)
    assert code == 0
    assert "resuming after 12 groups" in err
    assert "/112 " in err  # the bar has the 28 groups that are left
    assert len(list(read_groups(output))) == 40
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl"}


def test_the_best_candidate_becomes_the_positive(tiny_model: Path, tmp_path: Path) -> None:
    data, output = write_lines(tmp_path / "a.jsonl", easy_groups(8)), tmp_path / "b.jsonl"
    result = score_groups(
        teacher=tiny_model, data_path=data, output=output, relabel=True, candidates=3
    )
    groups = list(read_groups(output))
    assert result.passages == 8 * 3
    for group, before in zip(groups, read_groups(data), strict=True):
        assert group.pos_scores is not None and group.neg_scores is not None
        assert group.pos_scores[0] >= max(group.neg_scores)
        assert len(group.pos) == 1 and {*group.documents} <= {*before.documents}


def test_relabelled_groups_keep_the_scores_of_each_passage() -> None:
    group = Group("q", ["a"], ["b", "c"], [1.0], [3.0, 2.0], None, "", [7.0], [8.0, 9.0])
    changed = relabelled(group)
    assert (changed.pos, changed.neg) == (["b"], ["c", "a"])
    assert (changed.pos_scores, changed.neg_scores) == ([3.0], [2.0, 1.0])
    assert (changed.pos_retrieval_scores, changed.neg_retrieval_scores) == ([8.0], [9.0, 7.0])
    assert relabelled(changed) == changed


def test_negatives_are_spread_over_the_range_of_scores() -> None:
    scores = [9.9, 0.0, 0.1, 0.2, 10.0, 5.2, 0.3, 9.8]
    assert sorted(scores[index] for index in stratified(scores, 3)) == [0.0, 5.2, 10.0]
    assert stratified(scores, 20) == list(range(8))
    assert len({*stratified([1.0] * 6, 4)}) == 4
    group = Group("q", ["p"], [str(score) for score in scores], [11.0], scores)
    kept = thinned(group, 4)
    assert sorted(kept.neg) == ["0.0", "10.0", "5.2"]
    assert kept.neg_scores == [float(text) for text in kept.neg]
    assert len(thinned(group, 1).neg) == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_requests": 5}, "--max_requests: requires the URL of an endpoint"),
        ({"candidates": 1}, "--candidates: must be at least 2"),
        ({"output": "/dev/stdout"}, "is a stream: expected a file"),
        ({"teacher": []}, "--teacher: expected a reranker or an endpoint"),
        ({"teacher": "no/folder/here"}, "no/folder/here"),
    ],
)
def test_wrong_options(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    data = write_lines(tmp_path / "a.jsonl", easy_groups(2))
    arguments = {"teacher": tiny_model, "data_path": data, "output": tmp_path / "b.jsonl"}
    with pytest.raises(InputError) as error:
        score_groups(**{**arguments, **options})
    assert problem in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl"}


def test_unscored_lines_are_the_users_error(cli: Run, tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text(json.dumps({"query": "q", "pos": ["a"]}) + "\n")
    options = ("--data_path", data, "--output", tmp_path / "b.jsonl")
    code, _, err = cli("score", "--teacher", tiny_model, *options)
    assert code == 2 and f"{data}:1: field 'neg' is missing" in err
