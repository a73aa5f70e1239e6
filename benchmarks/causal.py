"""Language models as rerankers beside sentence-transformers and a padded loop of transformers.

    python benchmarks/causal.py                        # both shapes, float32 and bfloat16
    python benchmarks/causal.py --models smollm2-135m --dtypes bfloat16 --rows scoring
    python benchmarks/causal.py --device cuda --queries 32 --documents 32

Weights are random, in the shapes of published models. Every contestant gets the same pairs in the
same round, in turns, in one process: a query whose prompt is about a third of each of its pairs.
`scoring` and `training` (forward and backward pass of groups) give pairs a second; `memory` gives
the peak of a process that scores once. Times are of the CPU on one thread (`--threads 1`), so that
other programs matter little; else of the clock.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared.folders import SQUAD_OR_SAMPLE, add_device, add_folders
from shared.machine import device, peak_memory, set_environment
from shared.texts import Source
from shared.workers import CONTEXT

Pairs = list[tuple[str, str]]
Contestant = Callable[[Pairs], Any]

#: Pieces of the tokenizer; the models have the numbers of embeddings that they are published with.
PIECES = 8_000

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
    },
}
# 6 of its 28 layers.
SHAPES["qwen3-0.6b-6"] = SHAPES["qwen3-0.6b"] | {"num_hidden_layers": 6}

#: The shapes that are measured if none are named, by device.
DEFAULT_SHAPES = {"cpu": ["smollm2-135m", "qwen3-0.6b-6"], "cuda": ["smollm2-135m", "qwen3-0.6b"]}

#: Pairs that the peers score at once, which is the default of sentence-transformers.
BATCH = 32

ROWS = ("scoring", "training", "memory")


def build(name: str, folder: Path, source: Source) -> Path:
    """Return a folder of a shape in the form of sentence-transformers, built once."""
    if folder.is_dir():
        return folder
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = chat_tokenizer(source)
    values = dict(SHAPES[name])
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        values.pop("model_type"),
        **values,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    plain = folder.with_name(folder.name + ".plain")
    AutoModelForCausalLM.from_config(config).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain), transformer_task="text-generation")
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    model = CrossEncoder(modules=[transformer, LogitScore(yes, no)], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def chat_tokenizer(source: Source) -> Any:
    """Return a tokenizer that is trained on the texts, with the chat template of Qwen3-Reranker."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from rerank_plugin.model.prompts import MAKERS

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    template = MAKERS["qwen3-reranker"].prompt.chat_template
    tokenizer.train_from_iterator([*source.documents[:5000], *[template] * 100], trainer)
    tokenizer.add_tokens(["yes", "no"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=2048,
    )
    fast.chat_template = template
    return fast


def texts(source: Source, queries: int, documents: int, words: int) -> Pairs:
    """Return queries with documents of different lengths, about `words` long."""
    rng = np.random.default_rng(0)
    running = " ".join(source.documents[:2000]).split()
    pairs = []
    for query in source.queries[:queries]:
        for _ in range(documents):
            length = int(np.clip(rng.lognormal(np.log(words), 0.4), 10, 3 * words))
            start = int(rng.integers(0, len(running) - length))
            pairs.append((query, " ".join(running[start : start + length])))
    return pairs


@dataclass(frozen=True)
class Setting:
    """One folder in one precision."""

    folder: Path
    dtype: str
    threads: int

    def contestants(self) -> dict[str, Contestant]:
        """Return what scores pairs, by name."""
        return {name: make(self) for name, make in SCORING.items()}


def ours(setting: Setting, *, shared: bool = True) -> Contestant:
    """Return the scoring of a `Reranker`, with or without shared prefixes."""
    from rerank_plugin import Reranker

    reranker = Reranker(setting.folder, dtype=setting.dtype, device=device())
    if not shared:
        scorer = reranker._scorer
        with_prefixes = scorer.encoder.windows

        def windows(pairs: Any) -> Any:
            return [[replace(w, shared=0) for w in document] for document in with_prefixes(pairs)]

        scorer.encoder.windows = windows  # type: ignore[method-assign]
    return reranker.logits


def cross_encoder(setting: Setting) -> Contestant:
    """Return the scoring of sentence-transformers."""
    import torch
    from sentence_transformers import CrossEncoder

    dtype = {"dtype": getattr(torch, setting.dtype)}
    model = CrossEncoder(str(setting.folder), device=device(), model_kwargs=dtype)

    def score(pairs: Pairs) -> Any:
        return model.predict(
            pairs,
            batch_size=BATCH,
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
            prompt="",
        )

    return score


def padded(setting: Setting) -> Contestant:
    """Return a loop over batches padded on the left, the logits of the last token alone."""
    import torch

    model, encode, yes, no = causal_lm(setting)
    model.eval()

    def score(pairs: Pairs) -> Any:
        scores = []
        with torch.inference_mode():
            for start in range(0, len(pairs), BATCH):
                inputs = encode(pairs[start : start + BATCH])
                logits = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()
                scores.append(logits[:, yes] - logits[:, no])
        return torch.cat(scores).numpy(force=True)

    return score


def causal_lm(setting: Setting) -> tuple[Any, Callable[[Pairs], Any], int, int]:
    """Return a causal language model, the encoding of padded batches, and two tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        setting.folder, dtype=getattr(torch, setting.dtype)
    ).to(device())
    tokenizer = AutoTokenizer.from_pretrained(setting.folder, padding_side="left")

    def encode(pairs: Pairs) -> Any:
        chats = [
            [{"role": "query", "content": query}, {"role": "document", "content": document}]
            for query, document in pairs
        ]
        prompts = tokenizer.apply_chat_template(chats, tokenize=False)
        batch = tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
        return batch.to(device())

    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    return model, encode, yes, no


SCORING: dict[str, Callable[[Setting], Contestant]] = {
    "rerank-plugin": ours,
    "rerank-plugin, prefixes not shared": lambda setting: ours(setting, shared=False),
    "sentence-transformers": cross_encoder,
    "padded loop": padded,
}


def our_training(setting: Setting, *, shared: bool = True) -> Contestant:
    """Return a forward and backward pass of packed rows."""
    import torch

    from rerank_plugin.engine.encoder import PairEncoder
    from rerank_plugin.engine.scorer import Scorer, on_device, pair_logits
    from rerank_plugin.model.loading import load_model

    loaded = load_model(setting.folder)
    encoder = PairEncoder(loaded.tokenizer, max_length=1024, prompt=loaded.prompt)
    scorer = Scorer(loaded.model.to(device()), encoder)
    loaded.model.train()

    def step(pairs: Pairs) -> Any:
        loaded.model.zero_grad()
        encoded = encoder.encode(pairs)
        if not shared:
            encoded = [replace(pair, shared=0) for pair in encoded]
        with torch.autocast(device(), torch.bfloat16, enabled=setting.dtype == "bfloat16"):
            logits = pair_logits(loaded.model, on_device(scorer.inputs(encoded), scorer.device))
        return backward(logits)

    return step


def padded_training(setting: Setting) -> Contestant:
    """Return a forward and backward pass of a padded batch."""
    import torch

    model, encode, yes, no = causal_lm(replace(setting, dtype="float32"))
    model.train()

    def step(pairs: Pairs) -> Any:
        model.zero_grad()
        with torch.autocast(device(), torch.bfloat16, enabled=setting.dtype == "bfloat16"):
            outputs = model(**encode(pairs), logits_to_keep=1, use_cache=False)
        logits = outputs.logits[:, -1].float()
        return backward(logits[:, yes] - logits[:, no])

    return step


def cross_encoder_training(setting: Setting) -> Contestant:
    """Return a forward and backward pass of sentence-transformers' model."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(setting.folder), device=device())
    model.train()

    def step(pairs: Pairs) -> Any:
        model.zero_grad()
        with torch.autocast(device(), torch.bfloat16, enabled=setting.dtype == "bfloat16"):
            scores = model(model.preprocess(pairs, prompt=""))["scores"]
        return backward(scores[:, 0].float())

    return step


def backward(logits: Any) -> Any:
    """Compute the gradients of a loss, and return the logits."""
    import torch

    torch.autograd.backward(-torch.log_softmax(logits, 0)[0])
    return logits.detach().numpy(force=True)


TRAINING: dict[str, Callable[[Setting], Contestant]] = {
    "rerank-plugin": our_training,
    "rerank-plugin, prefixes not shared": lambda setting: our_training(setting, shared=False),
    "sentence-transformers": cross_encoder_training,
    "padded loop": padded_training,
}


def measure(
    makers: dict[str, Callable[[Setting], Contestant]],
    setting: Setting,
    pairs: Pairs,
    rounds: int,
) -> dict[str, dict[str, Any]]:
    """Return for each contestant pairs a second in each round, and its distance from the first."""
    import torch

    torch.set_num_threads(setting.threads)
    alone = setting.threads == 1 and device() == "cpu"
    clock = time.process_time if alone else time.perf_counter
    contestants = {name: make(setting) for name, make in makers.items()}
    scores = {name: np.asarray(score(pairs)) for name, score in contestants.items()}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, score in contestants.items():
            start = clock()
            score(pairs)
            rates[name].append(len(pairs) / (clock() - start))
    first = next(iter(scores.values()))
    return {
        name: {
            "pairs_a_second": rates[name],
            "furthest": float(np.abs(scores[name] - first).max()),
        }
        for name in contestants
    }


def peak(name: str, setting: Setting, pairs: Pairs) -> int:
    """Return the peak memory of a process that scores once, in bytes."""
    import torch

    torch.set_num_threads(setting.threads)
    SCORING[name](setting)(pairs)
    return peak_memory()


def peaks(setting: Setting, pairs: Pairs) -> dict[str, dict[str, Any]]:
    """Return the peak memory of each contestant, in a process of its own."""
    found = {}
    for name in SCORING:
        with ProcessPoolExecutor(1, mp_context=CONTEXT) as process:
            found[name] = {"peak_memory": process.submit(peak, name, setting, pairs).result()}
    return found


def shared_part(folder: Path, pairs: Pairs) -> tuple[int, float]:
    """Return the number of tokens of pairs, and the part of them that queries share."""
    from rerank_plugin.engine.encoder import PairEncoder
    from rerank_plugin.model.loading import load_model

    loaded = load_model(folder)
    encoder = PairEncoder(loaded.tokenizer, max_length=1024, prompt=loaded.prompt)
    encoded = encoder.encode(pairs)
    tokens = sum(map(len, encoded))
    return tokens, sum(pair.shared for pair in encoded) / tokens


def show(console: Console, title: str, figures: dict[str, dict[str, Any]]) -> None:
    """Print the figures of a row."""
    table = Table(title=title)
    for column in ("", "median", "lowest and highest", "ours is times"):
        table.add_column(column)
    medians: dict[str, float] = {}
    for name, values in figures.items():
        rates = values.get("pairs_a_second") or [values["peak_memory"] / 2**20]
        medians[name] = statistics.median(rates)
        times = next(iter(medians.values())) / medians[name]
        spread = f"{min(rates):.2f} to {max(rates):.2f}"
        table.add_row(name, f"{medians[name]:.2f}", spread, f"{times:.2f}")
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    set_environment(options.threads, options.device)
    console = Console()
    source = Source.read(options.data)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "causal.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for name in options.models or DEFAULT_SHAPES[options.device]:
        folder = build(name, options.output / name, source)
        pairs = texts(source, options.queries, options.documents, options.words)
        tokens, part = shared_part(folder, pairs)
        console.print(f"{name}: {len(pairs)} pairs, {tokens} tokens, {part:.0%} of them shared")
        for dtype in options.dtypes:
            setting = Setting(folder, dtype, options.threads)
            for row in options.rows:
                if row == "memory":
                    figures = peaks(setting, pairs)
                else:
                    makers = SCORING if row == "scoring" else TRAINING
                    figures = measure(makers, setting, pairs, options.rounds)
                results[f"{name} {dtype} {row}"] = figures | {"tokens": tokens, "shared": part}
                path.write_text(json.dumps(results, indent=2))
                unit = "MB" if row == "memory" else "pairs a second"
                show(console, f"{name}, {dtype}, {row}: {unit}", figures)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=SHAPES, help="both shapes for the device")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--documents", type=int, default=8, help="of each query")
    parser.add_argument("--words", type=int, default=120, help="of a document, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    add_folders(
        parser, data=SQUAD_OR_SAMPLE, output="where causal.json and models go", name="causal"
    )
    add_device(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
