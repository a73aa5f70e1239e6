"""Adapters of rerankers: `langchain`, `llama_index`, each for its one framework."""
