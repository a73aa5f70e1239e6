"""Training with teacher scores."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugin.finetune.data.groups import Group, read_groups
from rerank_plugin.finetune.data.sampling import sample_group
from rerank_plugin.finetune.evaluation.scoring import evaluate_groups
from rerank_plugin.finetune.losses import LOSSES, make_loss

from ..factories import Run, easy_groups, write_lines
from .conftest import Train


def scored(records: list[dict[str, Any]], *, positive: float) -> list[dict[str, Any]]:
    """Return groups whose teacher scores the negatives 0, 1 and 2."""
    return [{**record, "pos_scores": [positive], "neg_scores": [0, 1, 2]} for record in records]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.lists(st.integers(4, 12), min_size=1, max_size=15),
    st.integers(2, 8),
    st.integers(0, 5),
)
def test_a_sample_has_the_teacher_scores_of_its_documents(
    pos: list[int], neg: list[int], size: int, epoch: int
) -> None:
    texts = [str(n) for n in pos], [str(n) for n in neg]
    group = Group("q", *texts, pos_scores=[*pos], neg_scores=[*neg])
    sample = sample_group(group, size=size, seed=0, epoch=epoch, index=0)
    assert sample.teacher == [int(text) for text in sample.documents]
    half = sample_group(Group("q", *texts, pos_scores=[*pos]), size=size, seed=0, epoch=0, index=0)
    assert half.teacher is None


@pytest.mark.parametrize("loss", LOSSES)
def test_a_model_learns_by_every_loss(train: Train, tmp_path: Path, loss: str) -> None:
    groups, held_out = easy_groups(24), easy_groups(8, start=100)
    result = train(
        data_path=write_lines(tmp_path / "scored.jsonl", scored(groups, positive=6.0)),
        eval_data_path=write_lines(tmp_path / "held_out.jsonl", scored(held_out, positive=6.0)),
        loss=loss,
        total_epoch=4,
        dtype="float32",
    )
    assert result.improved
    losses = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    assert min(losses[1:]) < losses[0]


def test_a_teacher_that_contradicts_the_labels_is_followed(train: Train, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "scored.jsonl", scored(easy_groups(24), positive=-6.0))
    options: dict[str, Any] = {"loss": "kl_divergence", "temperature": 2, "total_epoch": 4}
    trained = train(data_path=data, eval_data_path=data, dtype="float32", **options)
    means = [entry["ndcg@10"] for entry in trained.history if "ndcg@10" in entry]
    assert means[-1] < means[0]
    assert not trained.improved


def test_the_evaluation_loss_uses_teacher_scores(tiny_model: Path, tmp_path: Path) -> None:
    from rerank_plugin import Reranker

    reranker = Reranker(tiny_model)
    records = scored(easy_groups(3), positive=1.0)
    groups = list(read_groups(write_lines(tmp_path / "a.jsonl", records)))
    # A teacher whose scores are those of the model.
    outputs = [reranker.logits([(g.query, text) for text in g.documents]).tolist() for g in groups]
    agreeing = [
        Group(g.query, g.pos, g.neg, scores[:1], scores[1:])
        for g, scores in zip(groups, outputs, strict=True)
    ]
    for name in ("mse", "margin_mse", "kl_divergence"):
        assert evaluate_groups(reranker, agreeing, make_loss(name)).loss < 1e-6
        assert evaluate_groups(reranker, groups, make_loss(name)).loss > 1e-3


@pytest.mark.parametrize("side", ["train", "dev"])
def test_a_loss_without_its_teacher_scores_is_an_error_before_the_model_loads(
    cli: Run, tmp_path: Path, side: str
) -> None:
    files = {}
    for name in ("train", "dev"):
        records = scored(easy_groups(4), positive=1.0)
        if name == side:
            del records[2]["neg_scores"]
        files[name] = write_lines(tmp_path / f"{name}.jsonl", records)
    code, _, err = cli(
        "train",
        "--model_name_or_path",
        tmp_path / "no model is looked at",
        "--data_path",
        files["train"],
        "--eval_data_path",
        files["dev"],
        "--finetune_model_dir",
        tmp_path / "out",
        "--loss",
        "softmax_cross_entropy+0.5:margin_mse",
    )
    assert code == 2
    assert f"the first is {files[side]}:3" in err
    assert "--loss: softmax_cross_entropy+0.5:margin_mse requires teacher scores: 1 of " in err
    assert not list(tmp_path.glob("out*"))


def test_probable_false_negatives_are_not_trained_on(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = scored(easy_groups(12), positive=1.5)
    records[0]["neg_scores"] = [9, 9, 9]
    data = write_lines(tmp_path / "scored.jsonl", records)
    result = train(data_path=data, teacher_margin=0.5, total_epoch=1)
    # The positive and two of three negatives, of 11 groups.
    assert result.history[-1]["train_pairs"] == 11 * 3
    assert "leaves 1 of 12 training groups without a negative" in caplog.text
