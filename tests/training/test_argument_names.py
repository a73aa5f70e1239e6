"""Options of transformers.TrainingArguments: each is accepted, or refused with the reason."""

from dataclasses import fields
from typing import Any

import pytest
from transformers import TrainingArguments

from rerank_plugin.cli.parser import parse_options
from rerank_plugin.errors import OptionError
from rerank_plugin.finetune import FinetuneConfig
from rerank_plugin.finetune.argument_names import (
    BESIDE,
    INTERVALS,
    NOT_NEGATIVE,
    OURS,
    PASSED_ON,
    POSITIVE,
    RESERVED,
    TWINS,
)

NEEDED: dict[str, Any] = {"model_name_or_path": "m", "data_path": "d", "finetune_model_dir": "out"}


def test_every_training_argument_is_ours_refused_or_passed_on() -> None:
    names = {argument.name for argument in fields(TrainingArguments) if argument.init}
    groups = [set(TWINS.values()), OURS, set(RESERVED), PASSED_ON]
    known = [name for group in groups for name in group]
    assert len(known) == len(set(known))
    # Each version of transformers lacks some that another one has.
    assert names <= set(known)


@pytest.mark.parametrize("name", RESERVED)
def test_arguments_without_an_effect_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(OptionError, match=f"--{name}: cannot be set: ...") as error:
        FinetuneConfig(**NEEDED, trainer={name: 1})
    assert RESERVED[name] in str(error.value)


@pytest.mark.parametrize(
    ("trainer", "problem"),
    [
        ({"gradient_accumulation_steps": "2"}, "--gradient_accumulation_steps: invalid int value"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps: must be more"),
        ({"max_steps": 1.5}, "--max_steps: invalid int value: 1.5"),
        ({"warmup_steps": "0.1"}, "--warmup_steps: invalid int or float value: '0.1'"),
        ({"weight_decay": float("nan")}, "--weight_decay: must be a finite number, not nan"),
        ({"adam_epsilon": float("inf")}, "--adam_epsilon: must be a finite number, not inf"),
        ({"max_grad_norm": -1}, "--max_grad_norm: must be at least 0, not -1"),
        ({"dataloader_num_workers": -1}, "--dataloader_num_workers: must be at least 0, not -1"),
        ({"eval_steps": 0}, "--eval_steps: must be more than 0, not 0"),
        ({"save_steps": -0.5}, "--save_steps: must be more than 0, not -0.5"),
        ({"max_steps": 0}, "--max_steps: must be more than 0, or -1 for all, not 0"),
        ({"max_steps": -5}, "--max_steps: must be more than 0, or -1 for all, not -5"),
    ],
)
def test_numbers_are_checked(trainer: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError) as error:
        FinetuneConfig(**NEEDED, trainer=trainer)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("trainer", "problem"),
    [
        ({"hub_model_id": "me/mine"}, "--hub_model_id: requires --push_to_hub"),
        ({"fsdp_config": "f.json"}, "--fsdp_config: requires --fsdp"),
        ({"dataloader_persistent_workers": True}, "requires --dataloader_num_workers"),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
            "requires --activation_checkpointing or --gradient_checkpointing",
        ),
        (
            {"eval_steps": 2, "eval_strategy": "no"},
            "eval_steps: requires --eval_strategy steps",
        ),
        ({"save_steps": 2, "save_strategy": "epoch"}, "requires --save_strategy steps"),
        ({"logging_steps": 2, "logging_strategy": "no"}, "requires --logging_strategy steps"),
        ({"torch_compile_mode": "fast"}, "invalid choice: 'fast' (choose from default, "),
        ({"save_strategy": "best"}, "--save_strategy: best is not supported"),
        ({"optim_args": "a=1"}, "--optim_args: has no effect on --optim adamw_torch"),
        ({"optim": "sgd", "optim_target_modules": ["q"]}, "requires --optim galore_"),
    ],
)
def test_options_without_the_one_that_they_require_are_errors(
    trainer: dict[str, Any], problem: str
) -> None:
    with pytest.raises(OptionError) as error:
        FinetuneConfig(**NEEDED, trainer=trainer)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    "trainer",
    [
        {"eval_steps": 0.5, "eval_strategy": "steps", "max_grad_norm": 0, "max_steps": -1},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {}},
        {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 2},
        {"hub_model_id": "me/mine", "push_to_hub": True},
    ],
)
def test_options_with_the_one_that_they_require_are_accepted(trainer: dict[str, Any]) -> None:
    assert FinetuneConfig(**NEEDED, trainer=dict(trainer)).trainer == trainer


def test_tables_name_the_arguments_that_are_passed_on() -> None:
    assert POSITIVE | NOT_NEGATIVE | set(INTERVALS) | set(BESIDE) <= PASSED_ON | OURS


def test_a_token_is_not_saved() -> None:
    config = FinetuneConfig(**NEEDED, trainer={"push_to_hub": True, "hub_token": "hf_secret"})
    assert "hf_secret" not in str(config.to_dict())


def test_former_spellings_of_lora_options_are_accepted() -> None:
    arguments = [f"--{name}={value}" for name, value in NEEDED.items()]
    arguments += ["--lora", "--lora_rank=4", "--lora_targets=query", "--lora_rslora"]
    config = parse_options(FinetuneConfig, arguments, command="train")
    assert (config.lora_r, config.lora_target_modules, config.use_rslora) == (4, "query", True)
