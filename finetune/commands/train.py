"""`rerank-plugin train`."""

import shlex

from rerank_plugin.cli.console import say
from rerank_plugin.errors import CheckFailedError

from ..config import FinetuneConfig
from ..report.tables import print_comparison
from ..training.distributed import rank

__all__ = ["FinetuneConfig", "main"]


def main(config: FinetuneConfig) -> int:
    """Fine-tune, print the figures before and after, and say what to type next."""
    from ..training.finetune import finetune

    result = finetune(config)
    if rank() > 0:
        return 0
    print_comparison(result.before, result.after, result.difference)
    folder = result.model_dir
    if not result.improved:
        if config.trainer.get("eval_strategy") == "no":
            say(f"{folder} holds the last weights, which do not beat the ones it started from")
        else:
            say(f"nothing beat the model that the run started from: {folder} holds that one")
        if config.fail_if_not_better:
            raise CheckFailedError("--fail_if_not_better: no step was better than step 0")
    say(f"model: {folder}")
    rerank = ["rerank-plugin", "rerank", "--model_dir", str(folder)]
    say(f"next:  {shlex.join([*rerank, '--data_path', 'queries.jsonl'])}")
    return 0
