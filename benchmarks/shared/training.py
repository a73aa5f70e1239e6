"""Training rows: one run after the other, each from the same model on the same groups."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peers.scorers import OURS
from peers.table import is_installed
from peers.trainers import GROUP_SIZE, MAX_LENGTH, TRAINERS, Task, train
from tokenizers import Tokenizer

from shared.machine import precisions
from shared.models import Shape, without_dropout
from shared.results import Row, Run
from shared.texts import Source, pair_lengths, read_groups, write_groups
from shared.workers import WorkerError

#: Groups for the evaluation that this project's command always does; it is not timed.
HELD_OUT = 4

#: A training step in forwards: its own, and backward's products for inputs and for weights.
STEP_FORWARDS = 3


@dataclass(frozen=True)
class Contestant:
    """A trainer and how it is set."""

    who: str
    precision: str | None = None
    dropout: bool = True
    small_forwards: bool = False

    @property
    def setting(self) -> str:
        """Return its settings in words."""
        words = [self.precision or "default"]
        words += [] if self.dropout else ["no dropout"]
        words += ["small forwards"] if self.small_forwards else []
        return ", ".join(words)


def contestants(*, quick: bool) -> list[Contestant]:
    """Return all installed contestants: the default, equal precision, and peers' other ways.

    This project is first in its default, whose precision decides which one it still needs;
    it has no dropout unless it is asked for.
    """
    peers = [who for who in TRAINERS if who != OURS and is_installed(who)]
    chosen = [Contestant(who) for who in (OURS, *peers)]
    fastest = precisions()[-1]
    if fastest != "float32":
        chosen += [Contestant(who, fastest) for who in peers]
    if not quick:
        chosen += [Contestant(who, fastest, dropout=False) for who in peers]
        if "sentence-transformers" in peers:
            chosen.append(Contestant("sentence-transformers", fastest, small_forwards=True))
    return chosen


@dataclass(frozen=True)
class Workload:
    """A model and the groups that it is trained on."""

    model: Path
    groups: Path
    held_out: Path
    batch_groups: int
    work: Path
    log: Path

    @classmethod
    def prepare(
        cls, model: Path, source: Source, work: Path, log: Path, *, groups: int, batch_groups: int
    ) -> "Workload":
        """Write the groups."""
        if groups % batch_groups:
            # FlagEmbedding would cut a last batch that is not full into wrong groups.
            raise SystemExit(f"{groups} groups are no whole number of steps of {batch_groups}")
        work.mkdir(parents=True, exist_ok=True)
        files = work / "groups.jsonl", work / "held_out.jsonl"
        write_groups(source, files[0], count=groups, size=GROUP_SIZE)
        write_groups(source, files[1], count=HELD_OUT, size=GROUP_SIZE, skip=groups)
        return cls(model, *files, batch_groups, work, log)

    def task(self, contestant: Contestant) -> Task:
        """Return the task of a contestant."""
        return Task(
            model=self.model if contestant.dropout else without_dropout(self.model),
            groups=self.groups,
            held_out=self.held_out,
            batch_groups=self.batch_groups,
            precision=contestant.precision,
            small_forwards=contestant.small_forwards,
            work=self.work / "run",
        )


def measure_training(row: Row, workload: Workload, *, rounds: int, quick: bool) -> Iterator[str]:
    """Fill a row with runs; yields a line after each, so that it can be shown and saved.

    Runs that the row holds already, from a benchmark that was interrupted, are left out.
    """
    lengths = pair_lengths(
        read_groups(workload.groups),
        Tokenizer.from_file(str(workload.model / "tokenizer.json")),
        MAX_LENGTH,
    )
    flops = STEP_FORWARDS * Shape.read(workload.model).forward_flops(lengths)
    todo = contestants(quick=quick)
    for number in range(rounds):
        if len(row.pairs) == number:
            row.add_round(lengths, flops)
        if number == 0:
            yield from train_one(row, workload, todo[0], number)
            # Its default may be one precision or the other: this is the other one.
            precision = row.runs[0].precision
            todo += (
                []
                if quick
                else [Contestant(OURS, name) for name in precisions() if name != precision]
            )
        for index in range(len(todo)):
            yield from train_one(row, workload, todo[(index + number) % len(todo)], number)
    row.add_gemm()


def train_one(row: Row, workload: Workload, contestant: Contestant, number: int) -> Iterator[str]:
    """One contestant's run of a round, unless it is there already."""
    earlier = [
        run for run in row.runs if (run.who, run.setting) == (contestant.who, contestant.setting)
    ]
    run = earlier[0] if earlier else Run(contestant.who, contestant.setting, "")
    if len(run.seconds) > number:
        return
    row.add_gemm()
    name = f"{run.who}, {run.setting}"
    try:
        trained = train(contestant.who, workload.task(contestant), workload.log)
    except WorkerError as error:
        if contestant.who == OURS:
            raise
        # A base-size model in a peer's hands can need more memory than there is.
        yield f"{name}: {error}"
        return
    if trained.pairs != row.pairs[number]:
        raise SystemExit(f"{name}: trained on {trained.pairs} pairs, not {row.pairs[number]}")
    run.precision = trained.precision
    run.add(trained.seconds, trained.others)
    run.peak_memory = max(run.peak_memory, trained.peak_memory)
    if not earlier:
        row.runs.append(run)
    yield f"{name}: {trained.pairs / trained.seconds:.1f} pairs/s"
