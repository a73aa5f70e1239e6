"""Ranking on a cluster: shards of requests, each in a file of one folder."""

from pathlib import Path

from rerank_plugin.cli.console import bar, say
from rerank_plugin.extras import require
from rerank_plugin.io.paths import expanded, real_path
from rerank_plugin.io.request_tables import TABLE
from rerank_plugin.io.requests import request_files
from rerank_plugin.io.unfinished import Task
from rerank_plugin.offline.options import SHARD_SIZE, RerankOptions
from rerank_plugin.offline.ray_workers import (
    RayWorkers,
    check_shards,
    connected,
    plan_workers,
)
from rerank_plugin.offline.result import RerankResult
from rerank_plugin.offline.shard_folder import ShardFolder
from rerank_plugin.offline.shard_ranker import Ranking
from rerank_plugin.offline.shards import find_shards
from rerank_plugin.offline.task import MODEL, ranking_task


def rank_in_shards(options: RerankOptions, *, progress: bool) -> RerankResult:
    """Rank all requests on a Ray cluster; the finished shards of an earlier run are kept."""
    require("ray")
    files = [real_path(file) for file in request_files(options.data_path)]
    size = options.shard_size or SHARD_SIZE
    with bar("counting", "request", shown=progress) as counted:
        shards = find_shards(files, size, counted.update)
    is_table = all(file.name.endswith(TABLE) for file in files)
    suffix = options.output_format or ("parquet" if is_table else "jsonl")
    task = ranking_task(options, files, shard_size=size, output_format=suffix)
    total = sum(shard.count for shard in shards)
    output = real_path(expanded(str(options.output)))
    with ShardFolder.open(output, shards, suffix, task, overwrite=options.overwrite) as folder:
        done = total - sum(shard.count for shard in folder.unfinished())
        if done:
            say(f"resuming after {done} of {total} requests in {output}")
        rank_unfinished(options, task, folder, total, done, progress=progress)
        folder.finish()
    return RerankResult(folder.files, total, done)


def rank_unfinished(
    options: RerankOptions,
    task: Task,
    folder: ShardFolder,
    total: int,
    done: int,
    *,
    progress: bool,
) -> None:
    """Rank the shards of a folder that have no file yet."""
    unfinished = folder.unfinished()
    if not unfinished:
        return
    ranking = Ranking(
        model=shared_model(options.model_dir),
        fingerprints=task[MODEL],
        loading=options.loading,
        top_n=options.top_n,
        score_threshold=options.score_threshold,
    )
    with (
        connected() as ray,
        bar("ranking", "request", total, shown=progress, initial=done) as shown,
    ):
        check_shards(ray, unfinished)
        count, resources = plan_workers(
            ray.nodes(), options.workers, options.device, options.threads
        )
        RayWorkers(ray, ranking, resources).rank(
            unfinished,
            lambda shard: folder.files[shard.number],
            lambda shard: shown.update(shard.count),
            count=count,
        )


def shared_model(model: str) -> str:
    """Return the absolute path of a model folder, as workers have other working folders."""
    folder: Path = expanded(model)
    return str(real_path(folder)) if folder.is_dir() else model
