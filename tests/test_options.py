import inspect
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_plugin import Reranker
from rerank_plugin.cli.parser import parse_options
from rerank_plugin.errors import InputError, OptionError
from rerank_plugin.finetune import FinetuneConfig, finetune
from rerank_plugin.finetune.commands.evaluate import EvaluateOptions
from rerank_plugin.finetune.commands.trainer_options import TRAINER_OPTIONS
from rerank_plugin.finetune.mining.options import MineOptions
from rerank_plugin.offline.options import RerankOptions
from rerank_plugin.options import ScoreOptions, option

BASE = ["--model_name_or_path", "m", "--data_path", "d.jsonl", "--finetune_model_dir", "out"]


@dataclass(kw_only=True)
class Options:
    """Options."""

    path: str | list[str] = option(help="where")
    count: int | None = option(None, help="how many")
    rate: float = option(0.5, help="how fast, in %")
    loud: bool = option(False, help="whether")
    cut: float | str | None = option(None, help="where to cut", aliases=("threshold",))


def parse(*argv: str) -> Options:
    return parse_options(Options, argv, command="test")


def train(*argv: str) -> FinetuneConfig:
    return parse_options(FinetuneConfig, [*BASE, *argv], command="train", extras=TRAINER_OPTIONS)


def test_names_take_dashes_and_underscores_and_values_keep_theirs() -> None:
    assert parse("--path", "a-b_c", "--count=3") == Options(path="a-b_c", count=3)
    assert train("--train-group-size", "4", "--max_len=64").train_group_size == 4
    assert parse("--path=--odd").path == "--odd"


def test_flags_and_lists() -> None:
    assert parse("--path", "a", "b", "--loud") == Options(path=["a", "b"], loud=True)
    assert parse("--loud", "false", "--path", "a").loud is False
    assert parse("--path", "a", "--path", "b", "c").path == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), "the following options are required: --path"),
        (("--path", "a", "--cout", "3"), "unknown option --cout: did you mean --count?"),
        (("--path", "a", "--count", "many"), "argument --count: invalid int value: 'many'"),
        (
            ("--path", "a", "--loud", "maybe"),
            "invalid bool value: 'maybe' (choose from true, false)",
        ),
        (("a",), "unexpected argument 'a'"),
        (("--path",), "expected at least one argument"),
        (("--path", "a", ""), "argument --path: the value is empty: leave the option out"),
    ],
)
def test_misuse_is_one_line(argv: tuple[str, ...], expected: str) -> None:
    with pytest.raises(InputError) as error:
        parse(*argv)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_the_beginning_of_an_option_is_completed_in_the_error() -> None:
    with pytest.raises(InputError, match="unknown option --model: did you mean --model_name_or"):
        train("--model", "a")


def test_a_yaml_file_gives_options_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("path: [a, b]\ncount: 3\nrate: 1e-5\nloud: true\n", encoding="utf-8")
    expected = Options(path=["a", "b"], count=4, rate=1e-5, loud=True)
    assert parse("--config", str(path), "--count", "4") == expected
    assert parse("--config", str(path), "--path", "c").path == "c"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cout: 3", "unknown option 'cout': did you mean --count?"),
        ("- 3", "expected a mapping of options"),
        ("a: [", "invalid YAML"),
        ("", "expected a mapping of options, found null"),
        ("rate: 1\nrate: 2", "duplicate key 'rate'"),
    ],
)
def test_a_bad_yaml_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        parse("--config", str(path))
    assert str(error.value).startswith(str(path))
    assert expected in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        parse("--config", str(tmp_path / "no.yaml"))


def test_training_arguments_are_reachable(tmp_path: Path) -> None:
    config = train("--weight-decay", "0.1", "--bf16", "--lr_scheduler_type", "cosine")
    assert config.trainer == {"weight_decay": 0.1, "bf16": True, "lr_scheduler_type": "cosine"}
    path = tmp_path / "a.yaml"
    path.write_text("weight_decay: 0.1\nlearning_rate: 1e-4\n", encoding="utf-8")
    config = train("--config", str(path))
    assert (config.trainer, config.lr) == ({"weight_decay": 0.1}, 1e-4)


def test_a_twin_alone_is_our_option_and_both_are_an_error() -> None:
    assert train("--learning_rate", "1e-4").lr == 1e-4
    assert train("--num_train_epochs=2").total_epoch == 2
    with pytest.raises(InputError, match="--lr and --learning_rate are the same option"):
        train("--lr", "1e-5", "--learning_rate", "1e-5")


def test_an_alias_is_its_option_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("path: a\nthreshold: 0.5\n", encoding="utf-8")
    assert parse("--config", str(path)).cut == 0.5
    assert parse("--config", str(path), "--cut", "p@9").cut == "p@9"
    with pytest.raises(InputError, match="--threshold and --cut are the same option"):
        parse("--path", "a", "--threshold", "1", "--cut", "2")


@pytest.mark.parametrize("options", [RerankOptions, EvaluateOptions, MineOptions])
def test_every_command_loads_a_model_by_the_same_options(options: Any) -> None:
    model = ["--model_dir", "m", "--data_path", "d", "--baseline", "b"]
    mine = ["--corpus", "c", "--queries", "q", "--output", "o.jsonl", "--filter_model", "m"]
    argv = {RerankOptions: model[:4], MineOptions: mine}.get(options, model)
    loading = "--max_len 64 --long_documents windows --device cpu --dtype float32 --token_budget 99"
    loading += " --threads 1 --revision main --trust_remote_code"
    argv = [*argv, *loading.split()]
    parsed = parse_options(options, argv, command="test")
    expected = {
        "max_length": 64,
        "long_documents": "windows",
        "device": "cpu",
        "dtype": "float32",
        "token_budget": 99,
        "threads": 1,
        "revision": "main",
        "trust_remote_code": True,
    }
    assert {name: parsed.loading[name] for name in expected} == expected


def test_loading_options_have_the_defaults_of_a_reranker() -> None:
    parameters = inspect.signature(Reranker).parameters
    assert ScoreOptions().loading == {
        name: parameters[name].default for name in ScoreOptions().loading
    }
    assert set(parameters) - set(ScoreOptions().loading) == {"model", "adapter", "adapters"}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"train_group_size": 1}, "train_group_size"),
        ({"max_len": 0}, "max_len"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": -1.0}, "lr"),
        ({"factor": 1.5}, "factor"),
        ({"patience": 0}, "patience"),
        ({"merge": True}, "merge"),
        ({"on_bad_line": "ignore"}, "on_bad_line"),
        ({"factor": 0.3, "trainer": {"eval_strategy": "no"}}, "eval_strategy"),
        ({"early_stopping": 3, "trainer": {"eval_strategy": "no"}}, "eval_strategy"),
        ({"factor": 0.3, "trainer": {"lr_scheduler_type": "cosine"}}, "lr_scheduler_type"),
        ({"trainer": {"load_best_model_at_end": True}}, "load_best_model_at_end"),
        ({"trainer": {"learning_rate": 1e-5}}, "learning_rate"),
        ({"dropout": 1.0}, "dropout"),
        ({"finetune_model_dir": "/"}, "finetune_model_dir"),
    ],
)
def test_a_bad_value_names_its_option(options: dict[str, Any], name: str) -> None:
    values = {"model_name_or_path": "m", "data_path": "d", "finetune_model_dir": "out"}
    with pytest.raises(OptionError, match=f"^--{name}: "):
        FinetuneConfig(**values | options)


VALUES: dict[str, Any] = {"model_name_or_path": "m", "data_path": "d", "finetune_model_dir": "out"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch_size": "8"}, "--batch_size: invalid int value: '8'"),
        ({"device": 0}, "--device: invalid str value: 0"),
        ({"token_budget": 0}, "--token_budget: "),
        ({"threads": 0}, "--threads: "),
        ({"seed": 1.5}, "--seed: invalid int value: 1.5"),
        ({"lora": 1}, "--lora: invalid bool value: 1"),
        ({"lora_r": True}, "--lora_r: invalid int value: True"),
        ({"dropout": float("nan")}, "--dropout: must be a finite number, not nan"),
        ({"lr": float("inf")}, "--lr: must be a finite number, not inf"),
        ({"lr": "1e-5"}, "--lr: invalid value: '1e-5' (a number, or choose from auto): did you"),
        ({"lr": "AUTO"}, "did you mean auto?"),
        ({"lr": [1e-5]}, "--lr: invalid float or str value: [1e-05]"),
        ({"data_path": None}, "--data_path: invalid str or list value: None"),
        ({"data_path": ["a", 3]}, "--data_path: invalid str value: 3"),
        ({"total_epoch": None}, "--total_epoch: invalid float or str value: None"),
        ({"total_epoch": 0}, "--total_epoch: must be more than 0"),
        ({"trainer": None}, "--trainer: invalid dict value: None"),
        ({"eval_data_path": b"a.jsonl"}, "--eval_data_path: invalid str or list value: b'a.jsonl'"),
        (
            {"on_bad_line": "Skip"},
            "--on_bad_line: invalid choice: 'Skip' (choose from error, skip)",
        ),
    ],
)
def test_a_value_of_another_type_names_its_option(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError) as error:
        FinetuneConfig(**VALUES | options)
    assert problem in str(error.value)


def test_a_value_that_is_assigned_later_is_checked_too() -> None:
    config = FinetuneConfig(**VALUES)
    config.batch_size = 0
    with pytest.raises(OptionError, match="--batch_size: must be more"):
        finetune(config)


def test_paths_and_numbers_of_other_libraries_are_taken() -> None:
    config = FinetuneConfig(
        model_name_or_path=Path("m"),  # type: ignore[arg-type]
        data_path=(Path("a"), "b"),  # type: ignore[arg-type]
        finetune_model_dir="out",
        batch_size=np.int64(4),  # type: ignore[arg-type]
        lr=np.float32(0.5),  # type: ignore[arg-type]
        total_epoch=2,
    )
    values = config.model_name_or_path, config.data_path, config.batch_size, config.lr
    assert values == ("m", ["a", "b"], 4, 0.5)
    assert [type(value) for value in values] == [str, list, int, float]
    assert json.dumps(config.to_dict())


@pytest.mark.parametrize("text", ["2e\u22125", "0,0001", "1\u20132", "fast", "", "auto ", "0x1p-3"])
def test_a_number_that_takes_words_takes_no_others(text: str) -> None:
    with pytest.raises(InputError, match="--lr: "):
        train("--lr", text)


@pytest.mark.parametrize("value", ["-1e-1", "-.5", "-2", "-1E2"])
def test_negative_numbers_are_values(value: str, tmp_path: Path) -> None:
    assert train("--teacher-margin", value).teacher_margin == float(value)
    assert train(f"--teacher_margin={value}").teacher_margin == float(value)
    config = tmp_path / "a.yaml"
    config.write_text(f"teacher_margin: {value}\nlr_scheduler_kwargs: {{min_lr: 1.0}}\n")
    assert train("--config", str(config)).teacher_margin == float(value)


OLD_COMMAND = """
--model_name_or_path BAAI/bge-reranker-base --finetune_model_dir ./saved_model/test
--data_path data/train.jsonl --train_group_size 8 --max_len 512 --batch_size 2
--total_epoch 1000 --lr 1e-5 --factor 0.3 --patience 8 --device cuda
"""


def test_the_public_spellings() -> None:
    argv = OLD_COMMAND.split()
    config = parse_options(FinetuneConfig, argv, command="train", extras=TRAINER_OPTIONS)
    assert (config.total_epoch, config.lr, config.factor, config.patience) == (1000, 1e-5, 0.3, 8)
    assert (config.train_group_size, config.max_len, config.batch_size) == (8, 512, 2)
    assert config.device == "cuda"


def test_an_option_error_travels_between_processes() -> None:
    error = OptionError("lr", "must be more than 0")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.option) == ("--lr: must be more than 0", "lr")
