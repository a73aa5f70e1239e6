"""Tiny real models from config, tokenizers trained here, groups and files for tests."""

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

from rerank_plugin.finetune import FinetuneConfig
from rerank_plugin.io.jsonl import read_lines
from rerank_plugin.sample import sample_path

if TYPE_CHECKING:
    from rerank_plugin.finetune import FinetuneResult

FAMILIES = ("bert", "xlm-roberta", "modernbert", "electra")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}

#: Options of other families that have other names, or are required in addition.
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "canine": {"num_hash_buckets": 256},
    "deberta": {"pooler_hidden_size": 32},
    "deberta-v2": {"pooler_hidden_size": 32},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "eurobert": {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3},
    "flaubert": {"emb_dim": 32, "n_layers": 2, "n_heads": 2},
    "funnel": {"block_sizes": [1, 1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64},
    "jina_embeddings_v3": {"lora_rank": 2},
    "longformer": {"attention_window": [16, 16]},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "mobilebert": {"embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16},
    # Its code has this number wherever padding is.
    "mpnet": {"pad_token_id": 1},
    "squeezebert": {"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 2},
}

#: The seed of the order of a tokenizer's pieces.
ORDER_SEED = 2

SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "xlm-roberta": ("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
}


def sample_texts() -> list[str]:
    return [str(line.record()["text"]) for line in read_lines(sample_path("corpus.jsonl"))]


def number_pieces(tokenizer: Tokenizer, special: list[str]) -> None:
    """Give pieces the same ids in every process; trainers number them by hashes that differ.

    Otherwise every process would test another model, and some of those rank perfectly, or in the
    opposite order, before they are trained. The seed was chosen so that the tiny models do neither.
    """
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] not in ("WordPiece", "Unigram"):
        return
    scores = dict(model["vocab"])
    pieces = sorted(set(scores) - set(special))
    random.Random(ORDER_SEED).shuffle(pieces)
    pieces = [*special, *pieces]
    if model["type"] == "Unigram":
        vocabulary = [(piece, scores[piece]) for piece in pieces]
        tokenizer.model = models.Unigram(vocabulary, pieces.index(special[1]), False)
    else:
        numbers = {piece: number for number, piece in enumerate(pieces)}
        tokenizer.model = models.WordPiece(numbers, unk_token=model["unk_token"])


def train_tokenizer(family: str) -> PreTrainedTokenizerFast:
    pad, unk, start, end, mask = SPECIAL.get(family, SPECIAL["bert"])
    special = [pad, unk, start, end, mask]
    if family == "xlm-roberta":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=600, special_tokens=special, unk_token=unk, show_progress=False
        )
        template, inputs = f"{start} $A {end}", ["input_ids", "attention_mask"]
        pair = f"{start} $A {end} {end} $B {end}"
    elif family == "modernbert":
        tokenizer = Tokenizer(models.BPE(unk_token=unk))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        template, inputs = f"{start} $A {end}", ["input_ids", "attention_mask"]
        pair = f"{start} $A {end} $B {end}"
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token=unk))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=600, special_tokens=special, show_progress=False
        )
        template, inputs = f"{start} $A {end}", ["input_ids", "token_type_ids", "attention_mask"]
        pair = f"{start} $A {end} $B:1 {end}:1"
    tokenizer.train_from_iterator(sample_texts(), trainer)
    number_pieces(tokenizer, special)
    ids = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=pair, special_tokens=ids
    )
    # As in the tokenizer of MiniLM, which cuts and pads by itself.
    tokenizer.enable_truncation(24)
    tokenizer.enable_padding(length=24, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unk,
        cls_token=start,
        sep_token=end,
        mask_token=mask,
        model_max_length=128,
        model_input_names=inputs,
    )


#: How Qwen, Llama 3 and SmolLM cut texts, and how Gemma does: spaces become a mark.
CHAT_SPECIAL = ("<|endoftext|>", "<bos>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
QWEN_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CAUSAL_FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "mistral")

#: Words of prompts and scoring tokens, which shall be tokens of their own.
PROMPT_WORDS = ["yes no Yes No 1 0 query document Query Document Instruct system user assistant\n"]


def train_chat_tokenizer(kind: str = "qwen") -> PreTrainedTokenizerFast:
    """A tokenizer of a language model: `qwen`, `gemma`, or `llama2`, which marks a text's start."""
    tokenizer = Tokenizer(models.BPE())
    if kind == "qwen":
        split = pre_tokenizers.Split(Regex(QWEN_PIECES), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(CHAT_SPECIAL),
        show_progress=False,
        initial_alphabet=[*pre_tokenizers.ByteLevel.alphabet(), "\n"],
    )
    tokenizer.train_from_iterator([*sample_texts(), *PROMPT_WORDS * 200], trainer)
    tokenizer.add_tokens([word for word in ("yes", "no", "Yes", "No", "1", "0")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        bos_token="<bos>",
        model_max_length=512,
    )


def causal_config(
    family: str, tokenizer: PreTrainedTokenizerFast, **options: Any
) -> PreTrainedConfig:
    values = SIZES | {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return AutoConfig.for_model(family, **values | options)


def build_language_model(
    folder: Path,
    family: str = "qwen3",
    *,
    chat_template: str | None = None,
    kind: str | None = None,
    **options: Any,
) -> Path:
    """A causal language model whose weights are drawn large enough for scores to differ."""
    tokenizer = train_chat_tokenizer(kind or ("gemma" if family == "gemma" else "qwen"))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(causal_config(family, tokenizer, **options))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def build_config(
    family: str, tokenizer: PreTrainedTokenizerFast, **options: Any
) -> PreTrainedConfig:
    values = {**SIZES, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if family == "xlm-roberta":
        positions = 128 + values["pad_token_id"] + 1
        values |= {"max_position_embeddings": positions, "type_vocab_size": 1}
        return XLMRobertaConfig(**values | options)
    if family == "modernbert":
        values |= {
            "max_position_embeddings": 128,
            "local_attention": 16,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }
        return ModernBertConfig(**values | options)
    values |= {"max_position_embeddings": 128}
    if family in ("bert", "electra"):
        return (BertConfig if family == "bert" else ElectraConfig)(**values | options)
    values |= {"max_position_embeddings": 130, "type_vocab_size": 2, **OTHER_SIZES.get(family, {})}
    if family == "funnel":
        del values["num_hidden_layers"]
    return AutoConfig.for_model(family, **values | options)


def build_model(
    folder: Path, family: str = "bert", *, labels: int = 1, seed: int = 0, **options: Any
) -> Path:
    """Save a cross-encoder whose weights are large enough for scores to differ."""
    tokenizer = train_tokenizer(family)
    config = build_config(family, tokenizer, num_labels=labels, **options)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embedding" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_modular(
    folder: Path,
    family: str = "modernbert",
    *,
    pooling: str = "cls",
    head: Callable[[int], list[Any]] | None = None,
) -> Path:
    """A modular reranker that sentence-transformers makes: encoder, pooling and head."""
    transformers = pytest.importorskip("sentence_transformers")
    pytest.importorskip("sentence_transformers.base.modules")
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    tokenizer = train_tokenizer(family)
    torch.manual_seed(0)
    encoder = AutoModel.from_config(build_config(family, tokenizer))
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder), transformer_task="feature-extraction")
    width = encoder.config.hidden_size
    modules = [transformer, Pooling(width, pooling), *(head or ettin_head)(width)]
    model = transformers.CrossEncoder(modules=modules, device="cpu")
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embedding" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def ettin_head(width: int) -> list[Any]:
    """The modules after the pooling of cross-encoder/ettin-reranker-17m-v1 and its kind."""
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    return [
        Dense(width, width, bias=False, activation_function=torch.nn.GELU()),
        LayerNorm(width),
        Dense(width, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]


def easy_groups(count: int, *, start: int = 0, negatives: int = 3) -> list[dict[str, Any]]:
    """Return groups that a tiny model learns in a few steps: the positive contains `refund`."""
    texts = [text for text in sample_texts() if "refund" not in text]
    groups = []
    for i in range(start, start + count):
        pos, *neg = (texts[(i * 7 + n * 3) % len(texts)][:40] for n in range(negatives + 1))
        query = f"question number {i}"
        groups.append(
            {
                "query": query,
                "pos": [f"{pos} refund refund {i}"],
                "neg": [f"{text} {i} {n}" for n, text in enumerate(neg)],
            }
        )
    return groups


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def train_on_easy_groups(
    model: Path, folder: Path, *, groups: int = 24, held_out: int = 8, **options: Any
) -> "FinetuneResult":
    """Train on the CPU in float32, on groups that are written beside the folder of the model.

    Args:
        model: The base model.
        folder: The folder of the trained model.
        groups: The number of training groups.
        held_out: The number of groups of the evaluation data.
        options: Options of `FinetuneConfig`, which replace those of this function.
    """
    # Here, since it imports transformers' trainer.
    from rerank_plugin.finetune import finetune

    data, evaluation = (folder.with_suffix(f".{name}.jsonl") for name in ("train", "dev"))
    values: dict[str, Any] = {
        "model_name_or_path": model,
        "data_path": write_lines(data, easy_groups(groups)),
        "eval_data_path": write_lines(evaluation, easy_groups(held_out, start=100)),
        "finetune_model_dir": folder,
        "lr": 3e-3,
        "total_epoch": 1,
        "batch_size": 4,
        "max_len": 64,
        "dtype": "float32",
        "device": "cpu",
    }
    return finetune(FinetuneConfig(**values | options))


def mount(source: object, path: Path, *options: str) -> None:
    """Mount a file system over a folder or a file; skip the test if that is not permitted."""
    kind = () if options[:1] == ("--bind",) else ("-t", "tmpfs")
    command = ["mount", *kind, *options, str(source), str(path)]
    if os.name != "posix" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("not permitted to mount a file system")


def unmount(path: Path) -> None:
    """Unmount everything that is mounted over a path."""
    while not subprocess.run(["umount", "-l", path], capture_output=True, check=False).returncode:
        pass


Run = Callable[..., "tuple[int, str, str]"]


def slow(*values: object) -> list[Any]:
    """Return values of a parameter that are left to the slow tests."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
