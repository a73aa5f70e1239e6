"""`rerank-plugin rerank`: one JSON object for each request on stdout."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from tqdm import tqdm

from rerank_plugin.errors import OptionError
from rerank_plugin.options import check_choices, option
from rerank_plugin.requests import Request, read_requests

if TYPE_CHECKING:
    from rerank_plugin.reranker import Reranker

#: Requests whose pairs are scored together.
REQUESTS_AT_ONCE = 64


@dataclass(kw_only=True)
class RerankOptions:
    """Rank documents: prints {"query", "scores" in input order, "ranking"} for every request."""

    model_dir: str = option(help="the model: a hub id, a folder or an adapter folder")
    data_path: str | list[str] = option(help="a .json or .jsonl file with queries and documents")
    max_length: int | None = option(
        None, help="the longest pair in tokens; default: what the model was trained with, else 512"
    )
    top_n: int | None = option(None, help="how many documents a ranking has at most; default: all")
    normalize: str | None = option(
        None,
        choices=("sigmoid", "none"),
        help="scores from 0 to 1, or raw logits; default: what the model folder says, else sigmoid",
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:1 …")
    dtype: str = option("auto", help="auto, float32, bfloat16 or float16")
    trust_remote_code: bool = option(False, help="run code that comes with the model")

    def __post_init__(self) -> None:
        check_choices(self)
        if self.top_n is not None and self.top_n < 1:
            raise OptionError("top_n", f"{self.top_n} is less than 1")


def main(options: RerankOptions) -> int:
    """Rank every request of the data path, in its order."""
    # All of it is read once before the model loads: a bad line at the end comes to light first.
    total = sum(1 for _ in read_requests(options.data_path))
    from rerank_plugin.reranker import Reranker

    reranker = Reranker(
        options.model_dir,
        device=options.device,
        dtype=options.dtype,
        max_length=options.max_length,
        normalize=options.normalize,
        trust_remote_code=options.trust_remote_code,
    )
    requests = read_requests(options.data_path)
    with tqdm(total=total, desc="ranking", unit="query", dynamic_ncols=True) as bar:
        while part := list(islice(requests, REQUESTS_AT_ONCE)):
            for result in rank(reranker, part, options.top_n):
                sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            bar.update(len(part))
    return 0


def rank(
    reranker: "Reranker", requests: Sequence[Request], top_n: int | None
) -> Iterator[dict[str, object]]:
    """The printed result of each request."""
    ranked = reranker.rank_many([(request.query, request.documents) for request in requests])
    for request, ranking in zip(requests, ranked, strict=True):
        scores = {item.index: item.score for item in ranking}
        yield {
            "query": request.query,
            "scores": [scores[index] for index in range(len(scores))],
            "ranking": [{"index": item.index, "score": item.score} for item in ranking[:top_n]],
        }
