"""The functions of commands have the options of their commands."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import Parameter, signature
from typing import Any

import pytest

from rerank_plugin.finetune import (
    check_groups,
    convert,
    evaluate,
    export_model,
    fuse,
    merge,
    mine_negatives,
    quantize,
    score_groups,
)
from rerank_plugin.finetune.check.options import GroupCheckOptions
from rerank_plugin.finetune.converters.options import ConvertOptions
from rerank_plugin.finetune.evaluation.options import EvaluationOptions
from rerank_plugin.finetune.export.options import ExportOptions, MergeOptions, QuantizeOptions
from rerank_plugin.finetune.fusion.options import FuseOptions
from rerank_plugin.finetune.mining.options import MineOptions
from rerank_plugin.finetune.teachers.options import ScoreGroupsOptions
from rerank_plugin.offline import rerank_files
from rerank_plugin.offline.options import RerankOptions


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (mine_negatives, MineOptions),
        (check_groups, GroupCheckOptions),
        (convert, ConvertOptions),
        (evaluate, EvaluationOptions),
        (merge, MergeOptions),
        (export_model, ExportOptions),
        (quantize, QuantizeOptions),
        (fuse, FuseOptions),
        (score_groups, ScoreGroupsOptions),
        (rerank_files, RerankOptions),
    ],
)
def test_parameters_are_the_options_of_the_command(
    function: Callable[..., Any], options: Any
) -> None:
    parameters = dict(signature(function).parameters)
    assert parameters.pop("progress").default is False
    assert all(parameter.kind is Parameter.KEYWORD_ONLY for parameter in parameters.values())
    defaults = {field.name: field.default for field in fields(options)}
    assert defaults == {
        name: MISSING if parameter.default is Parameter.empty else parameter.default
        for name, parameter in parameters.items()
    }
