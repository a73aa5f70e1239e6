from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from rerank_plugin.engine.attention import attend
from rerank_plugin.engine.boundaries import Boundaries
from rerank_plugin.engine.fused_layers import fuse_layers
from rerank_plugin.engine.last_layer import layer_lists
from rerank_plugin.engine.layout import Layout
from rerank_plugin.engine.packing import pack, prefix_batches, prepare_packing, row_cost
from rerank_plugin.engine.template import EncodedPair
from rerank_plugin.model.adapters import ActiveAdapter
from rerank_plugin.model.causal import pool_last_token
from rerank_plugin.model.device import onednn_takes
from rerank_plugin.model.families import FAMILIES
from rerank_plugin.model.head import cast_backbone, run_head_in_float32

from .test_packing import assert_same_gradients, gradients, needs_gpu, with_adapter

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "vocab_size": 300,
    "pad_token_id": 0,
    "num_labels": 1,
}
SLIDING = ["full_attention", "sliding_attention", "sliding_attention"]
CONFIGS: dict[str, PreTrainedConfig] = {
    "gemma": GemmaConfig(**SIZES),
    "llama": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral, window": MistralConfig(**SIZES, sliding_window=16),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2, window": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=16, layer_types=SLIDING
    ),
    "qwen3": Qwen3Config(**SIZES),
    "qwen3, one key head": Qwen3Config(**SIZES | {"num_key_value_heads": 1}),
}
#: The lengths of prefixes (0 is none), and those of the rests of their pairs.
ROWS: list[tuple[int, list[int]]] = [(20, [30, 1, 17]), (0, [40, 5]), (7, [60]), (1, [3, 16])]


def build(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(deepcopy(config))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            nn.init.normal_(parameter, std=0.15)
        elif "norm" in name or "bias" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def build_packed(config: PreTrainedConfig) -> Any:
    model = build(config)
    pool_last_token(model)
    assert prepare_packing(model)
    return model


def make_pairs(rows: list[tuple[int, list[int]]], seed: int = 0) -> list[EncodedPair]:
    rng = np.random.default_rng(seed)
    pairs = []
    for shared, rests in rows:
        prefix = rng.integers(5, 300, shared, dtype=np.int32)
        for length in rests:
            rest = rng.integers(5, 300, length, dtype=np.int32)
            ids = np.concatenate([prefix, rest])
            pairs.append(EncodedPair(ids, np.zeros_like(ids), shared))
    rng.shuffle(pairs)
    return pairs


def stock_logits(model: Any, pairs: list[EncodedPair]) -> Tensor:
    """The plain forward of transformers' classifier over one padded batch."""
    longest = max(len(pair) for pair in pairs)
    ids, mask = torch.zeros(len(pairs), longest, dtype=torch.long), torch.zeros(len(pairs), longest)
    for i, pair in enumerate(pairs):
        ids[i, : len(pair)] = torch.from_numpy(pair.ids.astype(np.int64))
        mask[i, : len(pair)] = 1
    logits: Tensor = model(input_ids=ids, attention_mask=mask).logits[:, 0]
    return logits


def packed_logits(model: Any, pairs: list[EncodedPair], *, multiple: int = 1) -> Tensor:
    inputs = pack(pairs, first_position=0, with_types=False, causal=True, multiple=multiple)
    logits: Tensor = model(**inputs).logits[:, 0]
    return logits


def without_prefixes(pairs: list[EncodedPair]) -> list[EncodedPair]:
    return [EncodedPair(pair.ids, pair.types) for pair in pairs]


def test_every_causal_family_is_compared() -> None:
    causal = {name for name, family in FAMILIES.items() if family.causal}
    assert causal == {config.model_type for config in CONFIGS.values()}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_row_gives_the_padded_logits_and_gradients(name: str, lora: bool) -> None:
    model, stock = build_packed(CONFIGS[name]), build(CONFIGS[name])
    if lora:
        model, stock = with_adapter(model), with_adapter(stock)
    pairs = make_pairs(ROWS)
    expected = stock_logits(stock, pairs)
    assert expected.std() > 1e-2
    wanted = gradients(stock, expected)
    for packed in (pairs, without_prefixes(pairs)):
        for multiple in (1, 64):
            logits = packed_logits(model, packed, multiple=multiple)
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
            assert_same_gradients(gradients(model, logits), wanted)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral, window"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    pairs, calculated = make_pairs(ROWS), []
    for checkpointing in (False, True):
        model = build_packed(CONFIGS[name]).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        calculated.append(gradients(model, packed_logits(model, pairs)))
    assert_same_gradients(calculated[1], calculated[0])


row_lengths = st.lists(
    st.tuples(st.integers(0, 40), st.lists(st.integers(1, 40), min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=15, deadline=None)
@given(row_lengths, st.integers(0, 99), st.sampled_from(["qwen3", "mistral, window"]))
def test_random_lengths_give_the_padded_logits(
    rows: list[tuple[int, list[int]]], seed: int, name: str
) -> None:
    model, stock = build_packed(CONFIGS[name]), build(CONFIGS[name])
    pairs = make_pairs(rows, seed)
    with torch.inference_mode():
        torch.testing.assert_close(
            packed_logits(model, pairs), stock_logits(stock, pairs), atol=1e-5, rtol=1e-5
        )


@settings(max_examples=15, deadline=None)
@given(row_lengths, st.integers(0, 99), st.sampled_from(["llama", "qwen2, window"]), st.data())
def test_attention_of_a_pair_does_not_depend_on_its_neighbours(
    rows: list[tuple[int, list[int]]], seed: int, name: str, data: st.DataObject
) -> None:
    model, pairs = build_packed(CONFIGS[name]), make_pairs(rows, seed)
    order = data.draw(st.permutations(range(len(pairs))))
    with torch.inference_mode():
        logits = packed_logits(model, pairs)
        shuffled = packed_logits(model, [pairs[i] for i in order])
        alone = torch.cat([packed_logits(model, [pair]) for pair in pairs])
    torch.testing.assert_close(shuffled, logits[list(order)], atol=1e-6, rtol=0)
    torch.testing.assert_close(alone, logits, atol=1e-6, rtol=0)


def test_a_prefix_is_in_a_row_once() -> None:
    inputs = pack(make_pairs(ROWS), first_position=0, with_types=False, causal=True)
    assert inputs["input_ids"].shape[1] == sum(shared + sum(rests) for shared, rests in ROWS)


def test_the_last_token_of_a_pair_is_not_shared() -> None:
    ids = np.arange(5, 9, dtype=np.int32)
    layout = Layout.with_shared_prefixes([EncodedPair(ids, np.zeros_like(ids), 4)] * 2)
    assert [len(segment) for segment in layout.segments] == [3, 1, 1]
    assert layout.last == [1, 2]


@pytest.mark.parametrize("fused", [False, True], ids=["stock", "fused"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_layer_computes_the_last_tokens(name: str, fused: bool) -> None:
    model = build_packed(CONFIGS[name])
    if fused:
        assert fuse_layers(model, ActiveAdapter())
    rows: list[int] = []
    for layers in layer_lists(model):
        layers[-1].register_forward_hook(lambda _module, _inputs, out: rows.append(out.shape[1]))
    packed_logits(model, make_pairs(ROWS), multiple=32)
    assert rows == [32]


def test_positions_that_depend_on_the_longest_pair_are_not_packed() -> None:
    rotary = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = build(LlamaConfig(**SIZES, rope_parameters=rotary))
    pool_last_token(model)
    assert not prepare_packing(model)


def test_a_stock_classifier_is_not_packed() -> None:
    assert not prepare_packing(build(CONFIGS["llama"]))


def plain_attention(boundaries: Boundaries, tensors: list[Tensor], window: int) -> Tensor:
    """Causal attention written out, segment by segment."""
    query, key, value = tensors
    assert boundaries.keys is not None and boundaries.keys.rows is not None
    group, outputs = query.shape[1] // key.shape[1], []
    keys = boundaries.keys.rows.split(boundaries.keys.lengths)
    for rows, q in zip(keys, query[: boundaries.tokens].split(boundaries.lengths), strict=True):
        k, v = (tensor[rows].repeat_interleave(group, 1) for tensor in (key, value))
        scores = torch.einsum("ihd,jhd->hij", q, k) * q.shape[-1] ** -0.5
        distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
        unseen = (distance < 0) | (distance >= (window or len(k)))
        scores = scores.masked_fill(unseen, -torch.inf)
        outputs.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v))
    return torch.cat(outputs)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("window", [0, 2, 5, 65])
@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_causal_attention_in_bfloat16(
    size: int, window: int, heads: tuple[int, int], device: str
) -> None:
    torch.manual_seed(0)
    rows: list[tuple[int, list[int]]] = [
        (100, [1, 2, 11, 12, 13, 200]),
        (0, [1, 31, 33, 255, 256, 257]),
        (300, [60, 300]),
        (1, [1, 32]),
    ]
    boundaries = Layout.with_shared_prefixes(make_pairs(rows)).boundaries(causal=True)
    # Rows are filled up on a CPU alone.
    tokens = boundaries.tokens + (7 if device == "cpu" else 0)
    query = torch.randn(tokens, heads[0], size).bfloat16().requires_grad_()
    key, value = (torch.randn(tokens, heads[1], size).bfloat16().requires_grad_() for _ in "kv")
    rows_there = [tensor.to(device) for tensor in (query, key, value)]
    there = boundaries.to(torch.device(device))
    out = attend(there, *rows_there, scale=size**-0.5, window=window, causal=True).cpu()
    weight = torch.randn(out.shape).bfloat16()
    torch.autograd.backward((out * weight).float().sum())
    exact = [tensor.detach().float().requires_grad_() for tensor in (query, key, value)]
    expected = plain_attention(boundaries, exact, window)
    torch.autograd.backward((expected * weight[: boundaries.tokens].float()).sum())
    assert not out[boundaries.tokens :].any()
    torch.testing.assert_close(out[: boundaries.tokens].float(), expected, atol=2e-2, rtol=2e-2)
    for tensor, reference in zip((query, key, value), exact, strict=True):
        assert tensor.grad is not None and reference.grad is not None
        difference = (tensor.grad.float() - reference.grad).norm()
        assert difference < 6e-3 * reference.grad.norm()


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh", "gelu"])
@pytest.mark.parametrize("name", CONFIGS)
def test_fused_layers_give_the_stock_logits(name: str, activation: str) -> None:
    config = deepcopy(CONFIGS[name])
    config.hidden_act = activation
    model, stock, pairs = build_packed(config), build(config), make_pairs(ROWS)
    assert fuse_layers(model, ActiveAdapter())
    with torch.inference_mode():
        expected = stock_logits(stock, pairs)
        assert expected.std() > 1e-2
        torch.testing.assert_close(packed_logits(model, pairs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not onednn_takes(torch.bfloat16), reason="oneDNN refuses bfloat16 here")
@pytest.mark.parametrize("name", CONFIGS)
def test_fused_layers_in_bfloat16(name: str) -> None:
    model, stock, pairs = build_packed(CONFIGS[name]), build(CONFIGS[name]), make_pairs(ROWS)
    cast_backbone(model, torch.bfloat16)
    run_head_in_float32(model)
    assert fuse_layers(model, ActiveAdapter())
    with torch.inference_mode():
        expected = stock_logits(stock, pairs)
        logits = packed_logits(model, pairs, multiple=32)
        torch.testing.assert_close(logits, expected, atol=0.05 * float(expected.std()), rtol=0.05)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma"])
def test_fused_layers_add_the_active_adapter(name: str) -> None:
    from peft import LoraConfig, get_peft_model

    model, stock, pairs = build_packed(CONFIGS[name]), build(CONFIGS[name]), make_pairs(ROWS)
    base = stock_logits(stock, pairs)
    for wrapped in (model, stock):
        torch.manual_seed(1)
        targets = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        get_peft_model(
            wrapped, LoraConfig(target_modules=targets, init_lora_weights=False), adapter_name="a"
        ).eval()
    active = ActiveAdapter("a")
    assert fuse_layers(model, active)
    with torch.inference_mode():
        adapted = packed_logits(model, pairs)
        torch.testing.assert_close(adapted, stock_logits(stock, pairs), atol=1e-5, rtol=1e-5)
        assert (adapted - base).abs().max() > 0.1
        active.name = None
        torch.testing.assert_close(packed_logits(model, pairs), base, atol=1e-5, rtol=1e-5)


@given(row_lengths, st.integers(1, 600))
def test_prefix_batches_hold_every_pair_once_within_the_budget(
    rows: list[tuple[int, list[int]]], budget: int
) -> None:
    pairs = make_pairs(rows)
    batches = prefix_batches(pairs, budget, 384)
    assert sorted(index for batch in batches for index in batch) == list(range(len(pairs)))
    for batch in batches:
        cost = row_cost(Layout.with_shared_prefixes([pairs[i] for i in batch]), 384)
        assert cost <= budget + 1e-6 or len(batch) == 1


def test_pairs_of_a_prefix_are_in_one_batch_if_they_fit() -> None:
    pairs = make_pairs([(100, [20, 30, 40])] * 6)
    batches = prefix_batches(pairs, 450, 384)
    prefixes = [{pairs[i].ids[:100].tobytes() for i in batch} for batch in batches]
    assert [len(batch) for batch in batches] == [6, 6, 6]
    assert [len(prefix) for prefix in prefixes] == [2, 2, 2]
