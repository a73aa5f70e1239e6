import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.errors import OptionError

from ..factories import sample_texts

TEXTS = st.text(max_size=30) | st.sampled_from(sample_texts())


@settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(pairs=st.lists(st.tuples(st.text(max_size=8), TEXTS), max_size=4))
def test_encodes_as_a_call_of_the_tokenizer_does(
    family_model: Path, pairs: list[tuple[str, str]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(family_model)
    encoder = PairEncoder(AutoTokenizer.from_pretrained(family_model), max_length=64)
    for (query, document), encoded in zip(pairs, encoder.encode(pairs), strict=True):
        # In lists: a call with an empty text alone takes it for no text at all.
        plain = tokenizer(
            [query],
            [document],
            truncation="only_second",
            max_length=64,
            padding=False,
            return_token_type_ids=True,
        )
        assert encoded.ids.tolist() == plain["input_ids"][0]
        assert encoded.types.tolist() == plain["token_type_ids"][0]


def test_lengths_are_those_before_the_cut(tiny_model: Path) -> None:
    encoder = PairEncoder(AutoTokenizer.from_pretrained(tiny_model), max_length=32)
    pairs = [("a", "b"), ("ferry", sample_texts()[0])]
    long = PairEncoder(AutoTokenizer.from_pretrained(tiny_model), max_length=5000)
    assert encoder.lengths(pairs).tolist() == [len(pair) for pair in long.encode(pairs)]
    assert [len(pair) for pair in encoder.encode(pairs)] == [5, 32]


def test_a_long_query_is_cut_to_half_with_one_warning(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = PairEncoder(AutoTokenizer.from_pretrained(tiny_model), max_length=32)
    query, document = sample_texts()[:2]
    with caplog.at_level(logging.WARNING):
        pair, *_ = encoder.encode([(query, document), (query, "b"), ("a " * 20, document)])
    assert len(caplog.records) == 1
    ids = encoder.tokenizer(query, add_special_tokens=False)["input_ids"]
    cut = encoder.tokenizer(document, add_special_tokens=False)["input_ids"]
    assert pair.ids.tolist() == [2, *ids[:16], 3, *cut[:13], 3]


def test_a_long_query_stays_whole_where_the_pair_fits(tiny_model: Path) -> None:
    encoder = PairEncoder(AutoTokenizer.from_pretrained(tiny_model), max_length=32)
    query = "a " * 20
    plain = encoder.tokenizer([query], ["dog"])["input_ids"][0]
    assert encoder.encode([(query, "dog")])[0].ids.tolist() == plain


def test_a_length_without_room_is_an_error(tiny_model: Path) -> None:
    with pytest.raises(OptionError, match="max_length: 7 leaves no room for a document"):
        PairEncoder(AutoTokenizer.from_pretrained(tiny_model), max_length=7)


@pytest.mark.parametrize("call", ["encode", "windows", "lengths"])
def test_an_encoder_takes_no_instruction(tiny_model: Path, call: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    expected = f"^--instruction: {tiny_model} is an encoder, which takes no instruction$"
    with pytest.raises(OptionError, match=expected):
        PairEncoder(tokenizer, max_length=32, instruction="Find the answer.")
    encoder = PairEncoder(tokenizer, max_length=32)
    assert len(getattr(encoder, call)([("a", "b"), ("a", "b", "")])) == 2
    with pytest.raises(OptionError, match=expected):
        getattr(encoder, call)([("a", "b"), ("a", "b", "Find the answer.")])
