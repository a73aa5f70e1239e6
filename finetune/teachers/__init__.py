"""Teacher scores for groups, from local rerankers or an HTTP rerank endpoint."""
