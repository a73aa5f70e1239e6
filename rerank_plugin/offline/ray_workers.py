"""Workers on a Ray cluster: shards are ranked once each, whatever becomes of the workers."""

import logging
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rerank_plugin.errors import OptionError, RerankError
from rerank_plugin.extras import require
from rerank_plugin.offline.shard_ranker import Ranking, ShardRanker
from rerank_plugin.offline.shards import Shard, read_shard
from rerank_plugin.signals import ending_signals

logger = logging.getLogger(__name__)

#: A shard, or the model, that ends so many workers is the reason, and an error.
MAX_DEATHS = 3

#: Shards that have to be checked before their results are looked at.
CHECKED_AT_ONCE = 1_000


@contextmanager
def connected() -> Iterator[Any]:
    """Connect to the cluster that Ray finds, or start one on this machine; yield Ray's module.

    Raises:
        RerankError: there is no cluster at the address in `RAY_ADDRESS`.
    """
    ray = require("ray")
    if ray.is_initialized():
        yield ray
        return
    # A cluster that is started here sends nothing to Ray's makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with same_signal_handlers():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:
        address = os.environ.get("RAY_ADDRESS", "")
        raise RerankError(f"RAY_ADDRESS: no Ray cluster answers at {address!r}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def same_signal_handlers() -> Iterator[None]:
    """Restore the handlers of signals, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def plan_workers(
    nodes: Sequence[dict[str, Any]], count: int | None, device: str, threads: int | None
) -> tuple[int, dict[str, int]]:
    """Return the number of workers, and the resources of each.

    Args:
        nodes: The nodes of the cluster, as `ray.nodes()` describes them.
        count: The number of workers; None for one on each GPU or, without any, on each node.
        device: `auto`, `cpu` or `cuda`.
        threads: The CPUs of a worker; None for an equal share.

    Raises:
        OptionError: there is no GPU for `cuda`.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = int(sum(resources.get("GPU", 0) for resources in alive))
    if device == "cuda" and not gpus:
        raise OptionError("device", "the Ray cluster has no GPU")
    if gpus and device != "cpu":
        return count or gpus, {"num_gpus": 1}
    cpus = [int(resources["CPU"]) for resources in alive if resources.get("CPU", 0) >= 1]
    count = count or max(1, len(cpus))
    share = min(sum(cpus) // count, max(cpus, default=1))
    return count, {"num_cpus": threads or max(1, share)}


def check_shards(ray: Any, shards: Sequence[Shard]) -> None:
    """Read all requests of shards on the cluster's CPUs, before a model is loaded.

    Raises:
        InputError: a request is bad.
    """
    check = ray.remote(num_cpus=1)(check_shard)
    pending = [check.remote(shard) for shard in shards]
    while pending:
        # Each wait looks at all that is pending.
        done, pending = ray.wait(pending, num_returns=min(len(pending), CHECKED_AT_ONCE))
        for reference in done:
            result(ray, reference)


def check_shard(shard: Shard) -> None:
    """Read a shard; raises as `read_shard`."""
    read_shard(shard)


def result(ray: Any, reference: Any) -> Any:
    """Return a result of the cluster; raise what it raised there, without Ray's traceback."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause or error from None


class RayWorkers:
    """Workers with a model each. One that dies is replaced, and its shard is ranked again.

    Ray's own restarts would keep a shard for the worker that had it, whose node may be gone.

    Args:
        ray: Ray's module.
        ranking: The model and its options.
        resources: What each worker needs, as the options of an actor.
    """

    def __init__(self, ray: Any, ranking: Ranking, resources: dict[str, int]) -> None:
        self._ray = ray
        self._ranking = ranking
        actor = ray.remote(ShardRanker)
        self._actor = actor.options(max_restarts=0, max_task_retries=0, **resources)
        #: What is running: the worker and its shard, None while it loads the model.
        self._running: dict[Any, tuple[Any, Shard | None]] = {}
        self._waiting: deque[Shard] = deque()
        self._deaths: Counter[Shard | None] = Counter()

    def rank(
        self,
        shards: Sequence[Shard],
        output: Callable[[Shard], Path],
        finished: Callable[[Shard], Any],
        *,
        count: int,
    ) -> None:
        """Rank shards, each in one file.

        Args:
            shards: The shards.
            output: Returns the file of a shard.
            finished: Called with each shard that is ranked.
            count: The number of workers.

        Raises:
            RerankError: what a worker raised, or too many died.
        """
        self._waiting.extend(shards)
        try:
            for _ in range(min(count, len(shards))):
                self._start()
            while self._waiting or any(shard for _, shard in self._running.values()):
                self._step(output, finished)
        finally:
            for worker, _ in self._running.values():
                self._ray.kill(worker)

    def _start(self) -> None:
        """Start a worker, which gets a shard once its model is loaded."""
        worker = self._actor.remote(self._ranking)
        self._running[worker.load.remote()] = worker, None

    def _step(self, output: Callable[[Shard], Path], finished: Callable[[Shard], Any]) -> None:
        """Wait for one worker, and give it the next shard."""
        (done,), _ = self._ray.wait(list(self._running), num_returns=1)
        worker, shard = self._running.pop(done)
        try:
            result(self._ray, done)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError:
            self._replace(worker, shard)
            return
        if shard is None:
            self._deaths[None] = 0
        else:
            finished(shard)
        if self._waiting:
            following = self._waiting.popleft()
            self._running[worker.rank.remote(following, output(following))] = worker, following

    def _replace(self, worker: Any, shard: Shard | None) -> None:
        """Start another worker for one that died, and rank its shard again.

        Raises:
            RerankError: too many died for the same reason.
        """
        self._ray.kill(worker)
        self._deaths[shard] += 1
        what = f"it ranked the requests from {shard.where} on" if shard else "it loaded the model"
        if self._deaths[shard] == MAX_DEATHS:
            raise RerankError(
                f"{MAX_DEATHS} workers died, each while {what}: memory may not suffice; use a "
                "smaller --token_budget or --max_len, or fewer --workers"
            )
        logger.warning("a worker died while %s: another one is started", what)
        if shard:
            self._waiting.appendleft(shard)
        self._start()
