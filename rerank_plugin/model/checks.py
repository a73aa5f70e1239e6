"""What is checked of a model while it is loaded: its files, its weights, its tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rerank_plugin.errors import InputError
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.formats import ModelFormat
from rerank_plugin.model.head import head_names
from rerank_plugin.model.loaded import PICKLED
from rerank_plugin.model.settings import is_adapter

#: Any of them is a tokenizer that transformers can make a fast one of.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)

#: What a file begins with that git-lfs has not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

#: Beginnings of the names of weights that no score needs: heads of pretraining, and poolers.
PRETRAINING_HEADS = (
    "cls.",
    "contact_head.",
    "decoder.",
    "discriminator_predictions.",
    "generator_lm_head.",
    "generator_predictions.",
    "lm_head.",
    "lm_predictions.",
    "mask_predictions.",
    "pooler.",
    "pred_layer.",
    "predictions.",
    "sop_classifier.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "vocab_transform.",
)

#: Ends of the names of numbers that older versions of transformers stored among the weights.
STORED_BUFFERS = (".position_ids", ".token_type_ids", ".inv_freq")


def check_folder(name: str | Path) -> None:
    """Check that a model folder has its files, before transformers guesses."""
    folder = expanded(name)
    if not folder.is_dir():
        looks_like_a_path = str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
        if folder.exists() or looks_like_a_path:
            raise InputError(f"{name}: no model folder there")
        return
    if is_adapter(folder):
        return
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json, so no Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        how = f" ({PICKLED})" if pickled else ""
        raise InputError(f"{folder}: no model weights, expected model.safetensors{how}")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise InputError(f"{folder}: no tokenizer, expected tokenizer.json beside the weights")
    check_stored(folder)


def check_stored(folder: Path) -> None:
    """Check that the files of a model folder are there themselves.

    Raises:
        InputError: one is the pointer that git leaves of a large file without git-lfs.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".model", ".txt") and path.is_file():
            with path.open("rb") as file:
                start = file.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise InputError(
                    f"{path}: a Git LFS pointer, not the file itself: run `git lfs pull` there"
                )


def lacks_head(model: PreTrainedModel, info: Mapping[str, Any]) -> bool:
    """Return whether weights of the scoring head are not in the checkpoint."""
    return any(in_head(model, key) for key in info["missing_keys"])


def in_head(model: PreTrainedModel, key: str) -> bool:
    """Return whether a weight belongs to what follows the backbone."""
    return key.startswith(tuple(f"{head}." for head in head_names(model)))


def check_weights(source: str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Check that a checkpoint has the model's weights, and no others that a score would need.

    Raises:
        InputError: weights of the backbone are missing, have other shapes, or are not read.
    """
    kind = model.config.model_type
    for key, stored, expected in sorted(info["mismatched_keys"]):
        raise InputError(
            f"{source}: {key} has the shape {list(stored)} in the checkpoint, config.json asks for "
            f"{list(expected)}"
        )
    lost = sorted(key for key in info["missing_keys"] if not in_head(model, key))
    if lost:
        raise InputError(
            f"{source}: {len(lost)} weights are missing behind the head, such as {lost[0]}: "
            f"no checkpoint of a {kind} model"
        )
    prefix = f"{model.base_model_prefix}."
    unread = [
        key
        for key in sorted(info["unexpected_keys"])
        if not key.removeprefix(prefix).startswith(PRETRAINING_HEADS)
        and not key.endswith(STORED_BUFFERS)
    ]
    if unread:
        raise InputError(
            f"{source}: {len(unread)} weights of the checkpoint are not read by a {kind} sequence "
            f"classifier, such as {unread[0]}: its scores would not be the model's own"
        )


def check_vocabulary(
    source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Check that a model has an embedding for every token and token type of its tokenizer.

    Raises:
        InputError: it has not.
    """
    try:
        embeddings: Any = model.get_input_embeddings()
        rows = embeddings.weight.shape[0]
    except (AttributeError, NotImplementedError):
        # Tokens that are hashed have no rows of their own.
        return
    last, token = max((number, token) for token, number in tokenizer.get_vocab().items())
    if last >= rows:
        raise InputError(
            f"{source}: the tokenizer has {last + 1} tokens, up to {token!r}, and the model has "
            f"embeddings of {rows}: tokenizer and weights are of different models (or "
            "resize_token_embeddings was left out)"
        )


def check_head(source: str, model_format: ModelFormat) -> None:
    """Check that a model is in a format with a scoring head.

    Raises:
        InputError: it is a plain encoder.
    """
    if model_format == ModelFormat.ENCODER:
        raise no_head(source)


def no_head(source: str, missing: Sequence[str] = ()) -> InputError:
    """Return the error for scores of an encoder without a trained scoring head."""
    weights = f" ({', '.join(missing)})" if missing else ""
    return InputError(
        f"{source} has no trained scoring head{weights}, so its scores would be random: fine-tune "
        "it first (rerank-plugin train), or use a reranker"
    )
