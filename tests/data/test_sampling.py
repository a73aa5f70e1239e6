from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugin.finetune.data.dataset import GroupDataset
from rerank_plugin.finetune.data.groups import Group
from rerank_plugin.finetune.data.index_cache import cache_folder
from rerank_plugin.finetune.data.sampling import GroupBatches, sample_group
from rerank_plugin.finetune.data.splits import Hashes, halves, held_out_count, split_by_query
from rerank_plugin.finetune.text.normalize import text_digest, text_key

from ..factories import write_lines

GROUPS = st.builds(
    lambda pos, neg: Group("q", [f"p{i}" for i in pos], [f"n{i}" for i in neg]),
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.lists(st.integers(0, 20), min_size=1, max_size=25),
)


@given(GROUPS, st.integers(2, 12), st.integers(0, 9), st.integers(0, 9))
def test_a_sample_has_one_positive_and_no_text_twice(
    group: Group, size: int, seed: int, epoch: int
) -> None:
    sample = sample_group(group, size=size, seed=seed, epoch=epoch, index=3)
    assert sample == sample_group(group, size=size, seed=seed, epoch=epoch, index=3)
    assert len(set(sample.documents)) == len(sample.documents)
    assert len(sample.documents) == min(size, 1 + len(set(group.neg)))
    assert sample.labels == [1] + [0] * (len(sample.documents) - 1)
    assert sample.documents[0] in group.pos
    assert set(sample.documents[1:]) <= set(group.neg)


@given(GROUPS, st.integers(2, 12), st.integers(0, 9), st.data())
def test_a_sample_with_grades(group: Group, size: int, epoch: int, data: st.DataObject) -> None:
    grades = st.lists(st.integers(1, 3), min_size=(count := len(group.pos)), max_size=count)
    graded = replace(group, pos_labels=data.draw(grades))
    sample = sample_group(graded, size=size, seed=0, epoch=epoch, index=3)
    # Of copies the first one counts.
    first = dict(reversed([*zip(graded.documents, graded.labels, strict=True)]))
    assert sample.labels == [first[text] for text in sample.documents]
    assert sample.labels[0] == max(first.values()) > max(sample.labels[1:])
    lower = [text for text, label in first.items() if label < max(first.values())]
    assert len(set(sample.documents)) == len(sample.documents) == min(size, 1 + len(lower))
    # One grade for all positives changes no draw.
    same = replace(group, pos_labels=[2] * len(group.pos))
    draws = [sample_group(one, size=size, seed=0, epoch=epoch, index=3) for one in (group, same)]
    assert draws[0].documents == draws[1].documents


def test_draws_without_grades_are_fixed() -> None:
    group = Group("q", ["a", "b", "a"], ["c", "d", "d", "e", "f", "g"])
    drawn = [
        "".join(sample_group(group, size=4, seed=1, epoch=epoch, index=2).documents)
        for epoch in range(4)
    ]
    assert drawn == ["bgdc", "afeg", "bfce", "agdf"]


@given(GROUPS, st.integers(2, 12))
def test_every_negative_is_used_before_one_is_used_a_third_time(group: Group, size: int) -> None:
    negatives = set(group.neg)
    round_length = -(-len(negatives) // (size - 1))
    seen: Counter[str] = Counter()
    for epoch in range(round_length):
        seen.update(sample_group(group, size=size, seed=0, epoch=epoch, index=0).documents)
    assert negatives <= set(seen)
    assert all(seen[text] <= 2 for text in negatives)


@given(st.integers(1, 30), st.integers(0, 5))
def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone(groups: int, epoch: int) -> None:
    batches, again = (GroupBatches(groups, batch_size=4, seed=1) for _ in range(2))
    list(batches)
    for one in (batches, again):
        one.set_epoch(epoch)
    assert list(batches) == list(again)
    indices = sorted(index for batch in batches for index in batch)
    assert indices == [(epoch, index, True) for index in range(groups)]


def hashes(queries: list[str]) -> Hashes:
    return np.array([text_digest(query) for query in queries], np.uint64)


QUERIES = st.lists(st.text(st.characters(categories=["L", "Zs"]), max_size=4), min_size=2)


@given(QUERIES, st.integers(0, 3))
def test_no_query_is_in_both_splits(queries: list[str], seed: int) -> None:
    if len({text_key(query) for query in queries}) < 2:
        return
    train, held_out = map(list, split_by_query(hashes(queries), wanted=None, seed=seed))
    assert sorted(train + held_out) == list(range(len(queries)))
    assert train and held_out
    assert not {text_key(queries[i]) for i in train} & {text_key(queries[i]) for i in held_out}


def test_a_query_with_two_instructions_is_in_one_split(tmp_path: Path) -> None:
    lines = [
        {"query": f"q{i}", "pos": ["p"], "neg": ["n"], "instruction": text}
        for i in range(40)
        for text in ("Find fares.", "Find dogs.")
    ]
    path = write_lines(tmp_path / "groups.jsonl", lines)
    groups = GroupDataset.build(path, cache_folder(), None)
    train, held_out = split_by_query(groups.query_hashes, wanted=10, seed=0)
    assert len(held_out) == 20
    assert not {groups[i].query for i in train} & {groups[i].query for i in held_out}
    halved = halves(groups.query_hashes, seed=0)
    assert not {groups[i].query for i in halved[0]} & {groups[i].query for i in halved[1]}


def test_adding_a_group_leaves_the_others_in_their_split() -> None:
    queries = [f"query {i}" for i in range(300)]
    _, before = split_by_query(hashes(queries), wanted=50, seed=0)
    _, after = split_by_query(hashes([*queries, "one more"]), wanted=50, seed=0)
    assert len(set(before) ^ set(after)) <= 2
    _, other = split_by_query(hashes(queries), wanted=50, seed=1)
    assert len(set(before) ^ set(other)) > 50


def test_the_number_of_queries_held_out() -> None:
    counts = {n: held_out_count(n, None) for n in (2, 100, 300, 2_000, 50_000)}
    assert counts == {2: 1, 100: 20, 300: 50, 2_000: 100, 50_000: 500}
    assert held_out_count(10, 3) == 3


@given(QUERIES, st.integers(0, 3))
def test_no_query_is_a_validation_and_a_test_query(queries: list[str], seed: int) -> None:
    validation, test = map(list, halves(hashes(queries), seed=seed))
    keys = [{text_key(queries[index]) for index in side} for side in (validation, test)]
    if len(keys[0] | keys[1]) == 1:
        return  # One query has to do both.
    assert sorted(validation + test) == list(range(len(queries)))
    assert not keys[0] & keys[1]
    assert abs(len(keys[0]) - len(keys[1])) <= 1
