"""Padded batches, for models that do not take packed rows."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rerank_plugin.engine.packing import Inputs
from rerank_plugin.engine.template import EncodedPair


def pad(pairs: Sequence[EncodedPair], pad_id: int, *, with_types: bool) -> Inputs:
    """Return a batch padded on the right: int64 tensors `[pairs, longest]`."""
    shape = (len(pairs), max(len(pair) for pair in pairs))
    ids, types, mask = np.full(shape, pad_id), np.zeros(shape, int), np.zeros(shape, int)
    for row, pair in enumerate(pairs):
        ids[row, : len(pair)] = pair.ids
        types[row, : len(pair)] = pair.types
        mask[row, : len(pair)] = 1
    batch: Inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if with_types:
        batch["token_type_ids"] = torch.from_numpy(types)
    return batch


def batches_by_length(
    lengths: Sequence[int], token_budget: int, *, equal: bool = False
) -> Iterator[list[int]]:
    """Yield indices of pairs of similar length, longest first, padded tokens within a budget.

    With `equal`, all pairs of a batch have the same length, so that nothing is padded.
    """
    batch: list[int] = []
    longest = 0
    for index in np.argsort(-np.asarray(lengths), kind="stable"):
        longest = longest or lengths[index]
        full = longest * (len(batch) + 1) > token_budget
        if batch and (full or (equal and lengths[index] != longest)):
            yield batch
            batch, longest = [], lengths[index]
        batch.append(int(index))
    if batch:
        yield batch
