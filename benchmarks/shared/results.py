"""The measured times, and the figures that follow from it."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peers.scorers import OURS

from shared.machine import available_cpus, gemm_rates

#: CPUs that others may have during a round before its times are left out.
DISTURBED = 0.075 * available_cpus()


@dataclass
class Run:
    """One contestant in one row, with a time for every round."""

    who: str
    #: `default`, or what was set.
    setting: str
    #: What that made it compute in.
    precision: str
    seconds: list[float] = field(default_factory=list)
    #: CPUs that other programs had meanwhile.
    others: list[float] = field(default_factory=list)
    #: Bytes: the peak while loading (None where a run is one process), and of all its work.
    loading_memory: int | None = None
    peak_memory: int = 0

    def add(self, seconds: float, others: float) -> None:
        """Add a round."""
        self.seconds.append(seconds)
        self.others.append(others)

    @property
    def is_default(self) -> bool:
        """Return whether only settings that make the work comparable were set."""
        return self.setting == "default"


@dataclass
class Row:
    """One model on one workload: what a round held, and every contestant's times."""

    kind: str
    model: str
    workload: str
    title: str
    #: For each round, the same for all: pairs, their real tokens, and FLOPs over those.
    pairs: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    #: For each precision the machine's FLOP/s, a median before every round and after the last.
    gemm: dict[str, list[float]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Return the values that identify it."""
        return f"{self.kind}/{self.model}/{self.workload}"

    def add_round(self, lengths: Sequence[int], flops: float) -> None:
        """Add what a round holds: pairs of so many real tokens."""
        self.pairs.append(len(lengths))
        self.tokens.append(sum(lengths))
        self.flops.append(flops)

    def add_gemm(self) -> None:
        """Measure how fast the machine is now."""
        for precision, rate in gemm_rates().items():
            self.gemm.setdefault(precision, []).append(rate)

    def rates(self, run: Run, counts: Sequence[float]) -> list[float]:
        """Something a second, round by round, of the rounds that can be used."""
        return [counts[number] / run.seconds[number] for number in usable(run)]

    def gemm_share(self, run: Run) -> float | None:
        """Share of the machine's best GEMM rate at the run's precision, where that is measured."""
        if run.precision not in self.gemm:
            return None
        rate = statistics.median(self.rates(run, self.flops))
        return rate / max(self.gemm[run.precision])

    def ours(self, other: Run, *, default: bool) -> Run | None:
        """Return this project's run to compare with: its default, or at the same precision."""
        for run in self.runs:
            suits = run.is_default if default else run.precision == other.precision
            if run.who == OURS and suits:
                return run
        return None


def usable(*runs: Run) -> list[int]:
    """Return the rounds of these runs in which the machine was not busy otherwise, else all."""
    rounds = range(min(len(run.seconds) for run in runs))
    quiet = [n for n in rounds if all(run.others[n] <= DISTURBED for run in runs)]
    return quiet or list(rounds)


def others_cpus(rounds: Sequence[int], *runs: Run) -> float:
    """Return the most CPUs that other programs had in some rounds of these runs."""
    return max(run.others[number] for run in runs for number in rounds)


@dataclass
class Results:
    """All rows of a benchmark, kept in a file."""

    path: Path
    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    #: For each model and contestant, `difference` and `correlation` of logits with float32's.
    agreement: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # As they come back from a file.
        self.settings = json.loads(json.dumps(self.settings))

    def resume(self) -> None:
        """Take over the rows of the file, which must have been measured with these settings."""
        if not self.path.exists():
            return
        saved = json.loads(self.path.read_text(encoding="utf-8"))
        if saved["settings"] != self.settings:
            raise SystemExit(f"{self.path} was measured with other settings: leave out --resume")
        self.agreement = saved["agreement"]
        self.rows = [
            Row(**{**row, "runs": [Run(**run) for run in row["runs"]]}) for row in saved["rows"]
        ]

    def keep(self, row: Row) -> None:
        """Add a row, or what is new in it, and save everything."""
        if self.find(row.key) is None:
            self.rows.append(row)
        self.save()

    def find(self, key: str) -> Row | None:
        """Return the row of that key."""
        return next((row for row in self.rows if row.key == key), None)

    def save(self) -> None:
        """Write all results atomically."""
        record = {
            "machine": self.machine,
            "settings": self.settings,
            "agreement": self.agreement,
            "summary": [line for row in self.rows for line in summary(row)],
            "rows": [asdict(row) for row in self.rows],
        }
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
        unfinished.replace(self.path)


def summary(row: Row) -> list[dict[str, Any]]:
    """Return the figures of a row, one record a contestant."""
    lines = []
    for run in row.runs:
        if not run.seconds:
            continue
        pairs = row.rates(run, row.pairs)
        line: dict[str, Any] = {
            "row": row.key,
            "who": run.who,
            "setting": run.setting,
            "precision": run.precision,
            "pairs_per_second": statistics.median(pairs),
            "pairs_per_second_range": [min(pairs), max(pairs)],
            "tokens_per_second": statistics.median(row.rates(run, row.tokens)),
            "gemm_share": row.gemm_share(run),
            "peak_memory": run.peak_memory,
            "others_cpus": others_cpus(usable(run), run),
        }
        if row.kind == "latency":
            seconds = [run.seconds[number] for number in usable(run)]
            line["p50_seconds"] = percentile(seconds, 50)
            line["p95_seconds"] = percentile(seconds, 95)
        for name, default in (("same_precision", False), ("default", True)):
            ours = row.ours(run, default=default)
            if ours is None or run.who == OURS or (default and not run.is_default):
                continue
            rounds = usable(run, ours)
            ratios = [run.seconds[number] / ours.seconds[number] for number in rounds]
            line[f"faster_{name}"] = {
                "times": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
                "others_cpus": others_cpus(rounds, run, ours),
            }
        lines.append(line)
    return lines


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile, interpolated."""
    import numpy as np

    return float(np.percentile(values, share))
