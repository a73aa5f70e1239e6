"""Compute logits of pairs of texts."""
