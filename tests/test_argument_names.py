"""Options of transformers.TrainingArguments: each one works, or is refused with the reason."""

from dataclasses import fields
from typing import Any

import pytest
from transformers import TrainingArguments

from rerank_plugin.errors import OptionError
from rerank_plugin.finetune import FinetuneConfig
from rerank_plugin.finetune.argument_names import OURS, PASSED_ON, RESERVED, TWINS

NEEDED: dict[str, Any] = {"model_name_or_path": "m", "data_path": "d", "finetune_model_dir": "out"}


def test_every_training_argument_is_ours_refused_or_passed_on() -> None:
    names = {item.name for item in fields(TrainingArguments) if item.init}
    rooms = [set(TWINS.values()), OURS, set(RESERVED), PASSED_ON]
    assert sorted(name for room in rooms for name in room) == sorted(names)


@pytest.mark.parametrize("name", RESERVED)
def test_what_has_no_effect_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(OptionError, match=f"--{name}: cannot be set: ...") as error:
        FinetuneConfig(**NEEDED, trainer={name: 1})
    assert RESERVED[name] in str(error.value)


@pytest.mark.parametrize(
    ("trainer", "problem"),
    [
        ({"gradient_accumulation_steps": "2"}, "--gradient_accumulation_steps: invalid int value"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps: 0 must be more"),
        ({"max_steps": 1.5}, "--max_steps: invalid int value: 1.5"),
        ({"warmup_steps": "0.1"}, "--warmup_steps: invalid int or float value: '0.1'"),
        ({"hub_model_id": "me/mine"}, "--hub_model_id: 'me/mine' is for --push_to_hub"),
    ],
)
def test_numbers_that_a_run_computes_with_are_numbers(
    trainer: dict[str, Any], problem: str
) -> None:
    with pytest.raises(OptionError) as error:
        FinetuneConfig(**NEEDED, trainer=trainer)
    assert problem in str(error.value)


def test_a_token_is_not_written_down() -> None:
    config = FinetuneConfig(**NEEDED, trainer={"push_to_hub": True, "hub_token": "hf_secret"})
    assert "hf_secret" not in str(config.as_record())
