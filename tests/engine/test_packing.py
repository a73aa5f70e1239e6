from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    Data2VecTextConfig,
    DistilBertConfig,
    ElectraConfig,
    ErnieConfig,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
    RobertaPreLayerNormConfig,
    XLMRobertaConfig,
    XLMRobertaXLConfig,
)

from rerank_plugin.engine import attention
from rerank_plugin.engine.attention import ATTENTION, attend
from rerank_plugin.engine.boundaries import Boundaries
from rerank_plugin.engine.fused_layers import fuse_layers
from rerank_plugin.engine.last_layer import layer_lists, pools_in_last_layer
from rerank_plugin.engine.packing import equal_batches, pack, pair_costs, prepare_packing
from rerank_plugin.engine.template import EncodedPair
from rerank_plugin.finetune.training.lora import backbone_products
from rerank_plugin.model.adapters import ActiveAdapter
from rerank_plugin.model.families import FAMILIES, family_of, first_position

POSITIONS = 128
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 300,
    "num_labels": 1,
}
DISTILLED: dict[str, Any] = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 64,
    "vocab_size": 300,
    "num_labels": 1,
}
AFTER_PADDING: dict[str, Any] = {
    "max_position_embeddings": POSITIONS + 2,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
WINDOWED: dict[str, Any] = {
    "max_position_embeddings": POSITIONS,
    "local_attention": 16,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "albert": AlbertConfig(**SIZES, embedding_size=16, max_position_embeddings=POSITIONS),
    "bert": BertConfig(**SIZES, max_position_embeddings=POSITIONS),
    "camembert": CamembertConfig(**SIZES, **AFTER_PADDING),
    "data2vec-text": Data2VecTextConfig(**SIZES, **AFTER_PADDING),
    "distilbert": DistilBertConfig(**DISTILLED, max_position_embeddings=POSITIONS),
    "electra": ElectraConfig(**SIZES, embedding_size=16, max_position_embeddings=POSITIONS),
    "ernie": ErnieConfig(**SIZES, max_position_embeddings=POSITIONS),
    "modernbert": ModernBertConfig(
        **SIZES,
        **WINDOWED,
        classifier_pooling="cls",
        layer_types=["sliding_attention"] * (SIZES["num_hidden_layers"] - 1) + ["full_attention"],
    ),
    "modernbert, mean": ModernBertConfig(**SIZES, **WINDOWED, classifier_pooling="mean"),
    "roberta": RobertaConfig(**SIZES, **AFTER_PADDING),
    "roberta-prelayernorm": RobertaPreLayerNormConfig(**SIZES, **AFTER_PADDING),
    "xlm-roberta": XLMRobertaConfig(**SIZES, **AFTER_PADDING),
    "xlm-roberta-xl": XLMRobertaXLConfig(**SIZES, **AFTER_PADDING),
}
#: Documents of one token, full-length ones, more than three sliding windows, and between.
LENGTHS = [5, 4, 60, POSITIONS, 17, 33, 100, 5]


def build(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(deepcopy(config))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embedding" not in name:
            nn.init.normal_(parameter, std=0.15)
    return model.eval()


def make_pairs(lengths: list[int], seed: int = 0) -> list[EncodedPair]:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(5, 300, length, dtype=np.int32) for length in lengths]
    return [EncodedPair(i, (np.arange(len(i)) > len(i) // 2).astype(np.int32)) for i in ids]


def padded_logits(model: Any, pairs: list[EncodedPair], *, types: bool) -> Tensor:
    """Return the logits of transformers' own forward for one padded batch."""
    longest = max(len(pair) for pair in pairs)

    def padded(rows: list[np.ndarray], fill: int) -> Tensor:
        full = [np.pad(row, (0, longest - len(row)), constant_values=fill) for row in rows]
        return torch.from_numpy(np.stack(full).astype(np.int64))

    inputs = {
        "input_ids": padded([pair.ids for pair in pairs], model.config.pad_token_id),
        "attention_mask": padded([np.ones(len(pair), int) for pair in pairs], 0),
    }
    if types:
        inputs["token_type_ids"] = padded([pair.types for pair in pairs], 0)
    logits: Tensor = model(**inputs).logits[:, 0]
    return logits


def packed_logits(
    model: Any, pairs: list[EncodedPair], *, types: bool, multiple: int = 1
) -> Tensor:
    first = first_position(model.config)
    inputs = pack(pairs, first_position=first, with_types=types, multiple=multiple)
    logits: Tensor = model(**inputs).logits[:, 0]
    return logits


def gradients(model: Any, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward(torch.log_softmax(logits, 0)[0])
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (actual[name] - gradient).norm()
        assert difference <= 1e-3 * gradient.norm() + 1e-6 * largest, name


def test_every_family_that_packs_has_its_parity_test() -> None:
    rows = [(name, row) for name, row in FAMILIES.items() if not row.causal]
    packing = {name for name, row in rows if row.last_module is not None}
    assert packing == {config.model_type for config in CONFIGS.values()}


def skip_if_never_packed(config: PreTrainedConfig) -> None:
    """Skip families that older versions of transformers give an attention of their own."""
    model = build(config)
    model.set_attn_implementation(ATTENTION)
    if not model.is_backend_compatible() or model.config._attn_implementation != ATTENTION:
        pytest.skip("not packed with this version of transformers")


def with_adapter(model: Any) -> Any:
    """Return a model with a LoRA adapter whose weights are drawn."""
    from peft import LoraConfig, TaskType, get_peft_model

    torch.manual_seed(1)
    options = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        target_modules=backbone_products(model),
        init_lora_weights=False,
    )
    return get_peft_model(model, options).eval()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_row_gives_the_padded_forwards_logits_and_gradients(name: str, lora: bool) -> None:
    skip_if_never_packed(CONFIGS[name])
    model, plain = build(CONFIGS[name]), build(CONFIGS[name])
    assert prepare_packing(model)
    assert prepare_packing(model), "preparing it twice changes nothing"
    if lora:
        model, plain = with_adapter(model), with_adapter(plain)
    types = name in ("bert", "electra", "ernie", "albert")
    pairs = make_pairs(LENGTHS)
    expected = padded_logits(plain, pairs, types=types)
    packed = packed_logits(model, pairs, types=types)
    assert expected.std() > 1e-2
    torch.testing.assert_close(packed, expected, atol=1e-4, rtol=0)
    expected_gradients = gradients(plain, expected)
    assert_same_gradients(gradients(model, packed), expected_gradients)
    filled = packed_logits(model, pairs, types=types, multiple=64)
    torch.testing.assert_close(filled, expected, atol=1e-4, rtol=0)
    assert_same_gradients(gradients(model, filled), expected_gradients)


@pytest.mark.parametrize("fused", [False, True], ids=["stock", "fused"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_layer_computes_the_pooled_tokens(name: str, fused: bool) -> None:
    skip_if_never_packed(CONFIGS[name])
    model = build(CONFIGS[name])
    prepare_packing(model)
    if fused and not fuse_layers(model, ActiveAdapter()):
        pytest.skip("no fused layers")
    rows: list[int] = []
    for layers in layer_lists(model):
        layers[-1].register_forward_hook(lambda _module, _inputs, out: rows.append(out.shape[1]))
    pairs = make_pairs(LENGTHS)
    packed_logits(model, pairs, types=False, multiple=32)
    pools = family_of(model.config).layers is not None and name != "modernbert, mean"
    assert {*rows} == {32 if pools else packed_tokens(pairs, 32)}


def packed_tokens(pairs: list[EncodedPair], multiple: int) -> int:
    return -(-sum(map(len, pairs)) // multiple) * multiple


def test_a_last_layer_with_a_window_computes_all_tokens() -> None:
    skip_if_never_packed(CONFIGS["modernbert"])
    config = deepcopy(CONFIGS["modernbert"])
    config.layer_types = ["sliding_attention"] * len(config.layer_types)
    pairs = make_pairs(LENGTHS)
    model, plain = build(config), build(config)
    prepare_packing(model)
    assert not pools_in_last_layer(model)
    expected = padded_logits(plain, pairs, types=False)
    torch.testing.assert_close(
        packed_logits(model, pairs, types=False), expected, atol=1e-4, rtol=0
    )


def test_a_model_that_keeps_its_attention_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.4 to 5.7 ignore another attention for ModernBERT."""
    model = build(CONFIGS["bert"])
    monkeypatch.setattr(model, "set_attn_implementation", lambda _: None)
    assert not prepare_packing(model)
    pairs = make_pairs(LENGTHS)
    expected = padded_logits(build(CONFIGS["bert"]), pairs, types=True)
    torch.testing.assert_close(padded_logits(model, pairs, types=True), expected)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    skip_if_never_packed(CONFIGS[name])
    pairs, actual = make_pairs(LENGTHS), []
    for checkpointing in (False, True):
        model = build(CONFIGS[name])
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        prepare_packing(model)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        actual.append(gradients(model, packed_logits(model, pairs, types=False)))
    assert_same_gradients(actual[1], actual[0])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(4, POSITIONS), min_size=1, max_size=8), st.integers(0, 99))
def test_random_lengths_give_the_padded_logits(lengths: list[int], seed: int) -> None:
    skip_if_never_packed(CONFIGS["modernbert"])
    model, plain = build(CONFIGS["modernbert"]), build(CONFIGS["modernbert"])
    prepare_packing(model)
    pairs = make_pairs(lengths, seed)
    with torch.inference_mode():
        torch.testing.assert_close(
            packed_logits(model, pairs, types=False),
            padded_logits(plain, pairs, types=False),
            atol=1e-4,
            rtol=0,
        )


def plain_attention(rows: list[Tensor], lengths: list[int], window: int) -> Tensor:
    outputs = []
    for q, k, v in zip(*(row.split(lengths) for row in rows), strict=True):
        scores = torch.einsum("ihd,jhd->hij", q, k) * q.shape[-1] ** -0.5
        positions = torch.arange(len(q))
        if window:
            far = (positions[:, None] - positions[None]).abs() >= window
            scores = scores.masked_fill(far, -torch.inf)
        outputs.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v))
    return torch.cat(outputs)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_the_cpus_logits_and_gradients(name: str, dtype: torch.dtype) -> None:
    plain, model = build(CONFIGS[name]), build(CONFIGS[name])
    pairs = make_pairs(LENGTHS)
    expected = padded_logits(plain, pairs, types=False)
    wanted = gradients(plain, expected)
    prepare_packing(model)
    model.to("cuda")
    inputs = pack(pairs, first_position=first_position(model.config), with_types=False)
    inputs = {name: value.to(torch.device("cuda")) for name, value in inputs.items()}
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        with torch.inference_mode():
            served = model(**inputs).logits[:, 0].float().cpu()
        logits = model(**inputs).logits[:, 0].float().cpu()
    bound = 1e-4 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(logits, expected, atol=bound, rtol=0)
    torch.testing.assert_close(served, logits.detach(), atol=bound, rtol=0)
    trained = {name: gradient.cpu() for name, gradient in gradients(model, logits).items()}
    if dtype == torch.float32:
        assert_same_gradients(trained, wanted)
    else:
        away = sum((trained[name] - gradient).norm() ** 2 for name, gradient in wanted.items())
        assert away < 0.01 * sum(gradient.norm() ** 2 for gradient in wanted.values())


@needs_gpu
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_gradient_checkpointing_on_a_gpu(name: str) -> None:
    model, plain = build(CONFIGS[name]), build(CONFIGS[name])
    pairs = make_pairs(LENGTHS)
    wanted = gradients(plain, padded_logits(plain, pairs, types=False))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    prepare_packing(model)
    model.gradient_checkpointing_enable()
    model.train().to("cuda")
    inputs = pack(pairs, first_position=first_position(model.config), with_types=False)
    outputs = model(**{n: value.to(torch.device("cuda")) for n, value in inputs.items()})
    trained = gradients(model, outputs.logits[:, 0].cpu())
    assert_same_gradients({name: value.cpu() for name, value in trained.items()}, wanted)


@needs_gpu
@pytest.mark.parametrize("flash", [True, False], ids=["flash", "old"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 5])
def test_attention_on_a_gpu(
    window: int, dtype: torch.dtype, flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flash:
        monkeypatch.setattr(attention, "has_flash", lambda _: False)
    torch.manual_seed(0)
    lengths = [1, 2, 11, 33, 100, 255, 300]
    qkv = torch.randn(sum(lengths), 3, 3, 32).cuda().to(dtype).requires_grad_()
    boundaries = Boundaries.from_lengths(lengths).to(qkv.device)
    out = attend(boundaries, *qkv.unbind(1), scale=32**-0.5, window=window)
    weight = torch.randn(out.shape).cuda()
    torch.autograd.backward((out * weight).float().sum())
    exact = qkv.detach().cpu().float().requires_grad_()
    expected = plain_attention(list(exact.unbind(1)), lengths, window)
    torch.autograd.backward((expected * weight.cpu()).sum())
    bound = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.cpu().float(), expected, atol=bound, rtol=bound)
    assert qkv.grad is not None and exact.grad is not None
    assert (qkv.grad.cpu().float() - exact.grad).norm() < bound * exact.grad.norm()


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 3000))
def test_equal_batches_hold_every_item_once_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    costs = pair_costs(lengths, 384).tolist()
    batches = equal_batches(costs, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    sums = [sum(costs[index] for index in batch) for batch in batches]
    assert sums == sorted(sums, reverse=True)
    for batch, cost in zip(batches, sums, strict=True):
        assert cost <= budget + 1e-6 or len(batch) == 1


def test_batches_are_of_equal_cost() -> None:
    costs = pair_costs([50, 60, 70, 80] * 50, 384).tolist()
    sums = [sum(costs[i] for i in batch) for batch in equal_batches(costs, 2048)]
    assert max(sums) < 1.03 * min(sums)
