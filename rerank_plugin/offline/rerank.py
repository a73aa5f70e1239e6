"""Rank files of requests with one of the engines."""

from os import PathLike

from rerank_plugin.offline.local import rank_locally
from rerank_plugin.offline.options import RerankOptions
from rerank_plugin.offline.result import RerankResult


def rerank_files(
    *,
    model_dir: str | PathLike[str],
    data_path: str | PathLike[str] | list[str],
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
    top_n: int | None = None,
    score_threshold: float | str | None = None,
    engine: str = "local",
    workers: int | None = None,
    shard_size: int | None = None,
    output_format: str | None = None,
    normalize: str | None = None,
    max_length: int | None = None,
    long_documents: str = "cut",
    instruction: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    threads: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> RerankResult:
    """Rank the documents of all requests in files, in this process or on a Ray cluster.

    Results are in the order of the requests. A call that was interrupted or killed is resumed by
    the same call; with other data or options that is an error.

    Args:
        model_dir: A hub id, a folder or an adapter folder.
        data_path: Requests: a `.json`, `.jsonl` or `.parquet` file, a folder or a glob, or several.
            The columns of a table are `query`, `documents` (lists of texts) and perhaps
            `instruction` and `retrieval_scores`. With `engine="ray"` on a path that every node has,
            not `.json`.
        output: The `.jsonl` file of the results, None for stdout. With `engine="ray"` a folder on
            a path that every node has, with a file `part-00000.jsonl` for each shard of requests.
            Files appear when they are complete, and `_SUCCESS` when all of them are.
        overwrite: Replace earlier results.
        top_n: The number of documents in a ranking at most; all by default.
        score_threshold: The lowest score in a ranking, before `top_n` counts: a number, or the name
            of a calibrated threshold.
        engine: `local` for this process, or `ray` for the cluster that `ray.init()` finds, by
            `RAY_ADDRESS` or on this machine; without any, one is started here.
        workers: How many models score at once on a cluster: by default one for each GPU or, without
            any, one for each node. One that dies is started again, and its shard is ranked again.
        shard_size: How many requests are in a shard, 1,000 by default.
        output_format: `jsonl` or `parquet` for the files of a cluster; by default that of the data.
        normalize: `sigmoid`, `none` or `calibrated`; by default that of the model folder.
        max_length: The longest pair in tokens; by default that of training, else 512.
        long_documents: How longer documents are read: `cut` or `windows`.
        instruction: The instruction of requests without one.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `auto`, `float32`, `bfloat16`, `float16` or `int8`.
        token_budget: The maximum cost of a batch in tokens.
        threads: The number of threads on a CPU.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with a model.
        progress: Show progress bars on stderr.

    Returns:
        The files with the results, and the number of requests.

    Raises:
        InputError: an option or a request is invalid, or the model cannot be loaded.
        RerankError: a shard of requests ended several workers.
    """
    # The parameters are the fields of RerankOptions, which checks them.
    options = {name: value for name, value in locals().items() if name != "progress"}
    return rerank(RerankOptions(**options), progress=progress)


def rerank(options: RerankOptions, *, progress: bool) -> RerankResult:
    """Rank all requests."""
    if options.engine == "local":
        return rank_locally(options, progress=progress)
    from rerank_plugin.offline.sharded import rank_in_shards

    return rank_in_shards(options, progress=progress)
