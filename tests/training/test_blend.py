import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rerank_plugin import Reranker
from rerank_plugin.errors import OptionError
from rerank_plugin.finetune.blending.choice import ALPHAS, Trial, choose_blend
from rerank_plugin.finetune.blending.weights import interpolate
from rerank_plugin.finetune.evaluation.scoring import Evaluation
from rerank_plugin.finetune.training.blend import Blender
from rerank_plugin.finetune.training.model_selection import ModelSelection

from ..factories import easy_groups, write_lines
from .conftest import Train, weights


def metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def general_groups(path: Path) -> Path:
    """Groups whose order the training turns round: the positives are those without `refund`."""
    groups = easy_groups(24, start=200, negatives=1)
    return write_lines(path, [{**g, "pos": g["neg"], "neg": g["pos"]} for g in groups])


def test_the_ends_of_an_interpolation_are_exact() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        base, tuned = (torch.randn(1000).to(dtype) for _ in range(2))
        assert torch.equal(interpolate(base, tuned, 1.0), tuned)
        assert torch.equal(interpolate(base, tuned, 0.0), base)
        assert torch.equal(interpolate(tuned, tuned, 0.3), tuned)
    middle = 0.3 * tuned + 0.7 * base
    assert torch.allclose(interpolate(base.float(), tuned.float(), 0.3), middle.float(), atol=0.05)


def test_a_blend_is_between_the_base_and_the_fine_tuned_model(
    tiny_model: Path, train: Train, tmp_path: Path
) -> None:
    base, alone = weights(tiny_model), weights(train("alone", blend=1).model_dir)
    result = train("half", blend=0.5)
    half = weights(result.model_dir)
    assert not torch.equal(alone["classifier.weight"], base["classifier.weight"])
    for name, tensor in half.items():
        assert torch.allclose(tensor, (base[name] + alone[name]) / 2, atol=1e-6), name
    assert metrics(result.model_dir)["blend"]["alpha"] == 0.5
    settings = json.loads((result.model_dir / "rerank.json").read_text())
    assert settings["metrics"]["blend"]["alpha"] == 0.5
    for file in ("README.md", "report.html"):
        text = (result.model_dir / file).read_text().replace("&#39;", "'")
        assert "50% of the fine-tuned model's weights and 50% of the base model's" in text
    assert "blend" not in metrics(tmp_path / "alone")


def test_a_blend_with_an_adapter_scales_what_it_adds(tiny_model: Path, train: Train) -> None:
    options: dict[str, Any] = {"lora": True, "merge": True, "dtype": "float32"}
    alone = weights(train("alone", blend=1, **options).model_dir)
    half = weights(train("half", blend=0.5, **options).model_dir)
    base = weights(tiny_model)
    for name, tensor in half.items():
        assert torch.allclose(tensor, (base[name] + alone[name]) / 2, atol=1e-5), name


@pytest.mark.parametrize("options", [{"use_dora": True}, {"fold_calibration": True, "merge": True}])
def test_other_adapters_are_blended(train: Train, tmp_path: Path, options: dict[str, Any]) -> None:
    test = write_lines(tmp_path / "test.jsonl", easy_groups(24, start=300))
    result = train(blend=0.5, lora=True, test_data_path=test, dtype="float32", **options)
    assert metrics(result.model_dir)["blend"]["alpha"] == 0.5
    assert Reranker(result.model_dir).score([("a", "refund"), ("a", "dog")]).shape == (2,)


def test_a_blend_that_is_no_better_is_not_taken(train: Train, groups_file: Path) -> None:
    result = train(eval_data_path=groups_file)
    alone = train("alone", eval_data_path=groups_file, blend=1)
    assert_same(weights(result.model_dir), weights(alone.model_dir))
    blend = metrics(result.model_dir)["blend"]
    tried = {trial["alpha"]: trial["validation"] for trial in blend["tried"]}
    assert list(tried) == list(ALPHAS[: len(tried)]) and len(tried) > 1
    assert blend["alpha"] == 1
    assert metrics(result.model_dir)["validation"]["after"]["ndcg@10"] == tried[1.0]
    entries = [entry for entry in result.history if "blend_alpha" in entry]
    assert [entry["blend_alpha"] for entry in entries] == list(tried)
    assert "has the fine-tuned weights alone" in (result.model_dir / "README.md").read_text()


def test_a_model_that_forgets_is_a_warning(
    train: Train, tmp_path: Path, groups_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    general = general_groups(tmp_path / "general.jsonl")
    result = train(general_data_path=general, eval_data_path=groups_file, blend=1)
    record = metrics(result.model_dir)["general"]
    assert record["after"]["queries"] == 24
    assert record["difference"]["interval_95"]["ndcg@10"][1] < 0
    assert "worse" in caplog.text and "--data_path" in caplog.text
    for file in ("README.md", "report.html"):
        text = (result.model_dir / file).read_text()
        assert "On 24 general queries" in text and str(tmp_path) not in text
    blended = metrics(
        train("blended", general_data_path=general, eval_data_path=groups_file).model_dir
    )
    allowed = [trial["general"] for trial in blended["blend"]["tried"]]
    assert blended["general"]["after"]["ndcg@10"] >= record["after"]["ndcg@10"]
    assert blended["general"]["after"]["ndcg@10"] <= max(allowed)
    assert blended["general"]["before"] == record["before"]


def evaluation(values: float | list[float]) -> Evaluation:
    return Evaluation({"ndcg@10": np.broadcast_to(np.array(values, float), 50).copy()}, 0.0)


@pytest.mark.parametrize(
    ("validation", "general", "alpha", "tried"),  # the base has 0.62 on general queries
    [
        # Without general queries, the fine-tuned model alone unless a blend is better.
        ([0.8, 0.8, 0.8, 0.79], None, 1.0, 4),
        ([0.8, 0.82, 0.81], None, 0.8, 3),
        ([0.8, 0.79], None, 1.0, 2),
        # The highest share that keeps half of what was lost on them.
        ([0.8, 0.8, 0.8, 0.8], [0.5, 0.53, 0.57, 0.7], 0.6, 3),
        ([0.8, 0.81], [0.5, 0.6], 0.8, 2),
        # None does among those that lose little, and nothing beyond chance.
        ([0.8, 0.8, 0.8, 0.7], [0.5, 0.55, 0.52, 0.7], 0.8, 4),
        # No better than the base.
        ([0.8, 0.5], [0.5, 0.9], 1.0, 2),
        # Nothing is forgotten.
        ([0.8, 0.8], [0.62, 0.7], 1.0, 1),
    ],
)
def test_the_highest_share_that_keeps_enough_is_chosen(
    validation: list[float], general: list[float] | None, alpha: float, tried: int
) -> None:
    def evaluate(share: float) -> Trial:
        index = ALPHAS.index(share)
        other = evaluation(general[index]) if general else None
        return Trial(share, evaluation(validation[index]), other)

    before = evaluation(0.62) if general else None
    choice = choose_blend(evaluate, lambda e: bool(e.means["ndcg@10"] > 0.6), before)
    assert (choice.chosen.alpha, len(choice.tried)) == (alpha, tried)


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "place"), [(False, "choosing"), (True, "saving")])
def test_a_run_that_dies_while_it_blends_ends_like_one_that_did_not(
    train: Train,
    tmp_path: Path,
    groups_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    lora: bool,
    place: str,
) -> None:
    options: dict[str, Any] = {
        "lora": lora,
        "blend": "auto" if place == "choosing" else 0.5,
        "eval_data_path": groups_file,
        "general_data_path": general_groups(tmp_path / "general.jsonl"),
    }
    whole = train("whole", **options).model_dir
    apply, save, calls = Blender.apply, ModelSelection.replace, []

    def applied(self: Blender, alpha: float) -> None:
        apply(self, alpha)
        calls.append(alpha)
        if len(calls) == 2:
            raise KeyboardInterrupt

    def saved(self: ModelSelection, *arguments: Any) -> None:
        save(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if place == "choosing":
            patched.setattr(Blender, "apply", applied)
        else:
            patched.setattr(ModelSelection, "replace", saved)
        train(**options)
    resumed = train(**options).model_dir
    assert_same(weights(resumed), weights(whole))
    assert metrics(resumed) == metrics(whole)


def test_a_blend_that_cannot_be_made_is_an_error(tiny_encoder: Path, train: Train) -> None:
    with pytest.raises(OptionError, match=r"--blend: requires a trained reranker"):
        train(model_name_or_path=tiny_encoder, blend=0.5)
    for blend in (0, 1.5, "some"):
        with pytest.raises(OptionError, match="--blend"):
            train(blend=blend)
    result = train(model_name_or_path=tiny_encoder)
    assert "blend" not in metrics(result.model_dir)
