"""Ranking files of requests, in this process or on a Ray cluster."""

from rerank_plugin.offline.rerank import rerank_files
from rerank_plugin.offline.result import RerankResult

__all__ = ["RerankResult", "rerank_files"]
