"""`rerank-plugin train`: fine-tune, and print the metrics before and after."""

import shlex
from typing import TYPE_CHECKING

from rerank_plugin.cli.console import say
from rerank_plugin.errors import CheckFailedError

from ..config import FinetuneConfig

if TYPE_CHECKING:
    from ..training.finetune import FinetuneResult

__all__ = ["FinetuneConfig", "main"]


def main(config: FinetuneConfig) -> int:
    """Fine-tune, print the metrics and the next command, and return the exit code."""
    from ..training.finetune import finetune

    return report(config, finetune(config))


def report(config: FinetuneConfig, result: "FinetuneResult") -> int:
    """Print the metrics of a run and the next command, and return the exit code."""
    from ..blending.describe import describe_blend, describe_general
    from ..report.tables import print_comparison
    from ..training.distributed import is_main_process

    if not is_main_process():
        return 0
    print_comparison(result.before, result.after, result.difference)
    if result.blend:
        say(describe_blend(result.blend))
    if result.general:
        say(describe_general(result.general))
    folder = result.model_dir
    if not result.improved:
        if config.trainer.get("eval_strategy") == "no":
            say(f"the last weights did not beat the base model; {folder} contains the last weights")
        else:
            say(f"no checkpoint beat the base model; {folder} contains the base model")
        if config.fail_if_not_better:
            raise CheckFailedError("--fail_if_not_better: no checkpoint beat the base model")
    say(f"model: {folder}")
    rerank = ["rerank-plugin", "rerank", "--model_dir", str(folder)]
    say(f"next:  {shlex.join([*rerank, '--data_path', 'questions.jsonl'])}")
    return 0
