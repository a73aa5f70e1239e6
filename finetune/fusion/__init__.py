"""Fuse a reranker with the retriever in front of it."""
