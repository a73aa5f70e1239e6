"""Check a model while it is loaded: its files, its weights, its tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rerank_plugin.errors import InputError
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.files import stored_files
from rerank_plugin.model.formats import ModelFormat
from rerank_plugin.model.head import head_names
from rerank_plugin.model.head_modules import encoder_folder
from rerank_plugin.model.loaded import PICKLED
from rerank_plugin.model.settings import EXPORT, is_adapter

#: Files of a tokenizer, any of which transformers can load as a fast one.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)

#: The first bytes of a file that git-lfs has not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

#: Prefixes of weights that no score needs: heads of pretraining, and poolers.
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

#: Suffixes of buffers that older versions of transformers saved with the weights.
STORED_BUFFERS = (".position_ids", ".token_type_ids", ".inv_freq")


def check_folder(name: str | Path) -> None:
    """Check that a model folder has its files, before transformers guesses."""
    folder = expanded(name)
    if not folder.is_dir():
        looks_like_a_path = str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
        if folder.exists() or looks_like_a_path:
            raise InputError(f"{name}: no such model folder")
        return
    if is_adapter(folder):
        return
    check_stored(folder)
    folder /= encoder_folder(str(folder), None)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: not a Hugging Face model folder (config.json not found)")
    if not any(folder.glob("*.safetensors")):
        if (folder / EXPORT).is_file():
            raise InputError(
                f"{folder}: an export for another runtime ({EXPORT}): use the model it was made of"
            )
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        how = f" ({PICKLED})" if pickled else ""
        raise InputError(f"{folder}: model.safetensors not found{how}")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise InputError(f"{folder}: tokenizer.json not found")


def check_stored(folder: Path) -> None:
    """Check that no file of a model folder is a pointer of git-lfs.

    Raises:
        InputError: one is, as git without git-lfs does not fetch large files.
    """
    for path in stored_files(folder):
        if path.suffix in (".safetensors", ".json", ".model", ".txt"):
            with path.open("rb") as file:
                start = file.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise InputError(
                    f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull`"
                )


def lacks_head(model: PreTrainedModel, info: Mapping[str, Any]) -> bool:
    """Return whether weights of the scoring head are not in the checkpoint."""
    return any(in_head(model, key) for key in info["missing_keys"])


def in_head(model: PreTrainedModel, key: str) -> bool:
    """Return whether a weight belongs to the head."""
    return key.startswith(tuple(f"{head}." for head in head_names(model)))


def check_weights(source: str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Check that a checkpoint has the model's weights, and no others that a score would need.

    Raises:
        InputError: weights of the backbone are missing, have other shapes, or are not loaded.
    """
    kind = model.config.model_type
    for key, stored, expected in sorted(info["mismatched_keys"]):
        raise InputError(
            f"{source}: {key} has shape {list(stored)} in the checkpoint, but {list(expected)} in "
            "config.json"
        )
    missing = sorted(key for key in info["missing_keys"] if not in_head(model, key))
    if missing:
        raise InputError(
            f"{source}: not a checkpoint of a {kind} model ({len(missing)} weights of the backbone "
            f"are missing, such as {missing[0]})"
        )
    prefix = f"{model.base_model_prefix}."
    unused = [
        key
        for key in sorted(info["unexpected_keys"])
        if not key.removeprefix(prefix).startswith(PRETRAINING_HEADS)
        and not key.endswith(STORED_BUFFERS)
    ]
    if unused:
        raise InputError(
            f"{source}: {len(unused)} weights of the checkpoint are not used by a {kind} sequence "
            f"classifier, such as {unused[0]}: its scores would be wrong"
        )


def check_vocabulary(
    source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Check that a model has an embedding for every token and token type of its tokenizer.

    Raises:
        InputError: one is missing.
    """
    try:
        embeddings: Any = model.get_input_embeddings()
        rows = embeddings.weight.shape[0]
    except (AttributeError, NotImplementedError):
        # Tokens that are hashed have no embeddings.
        return
    last, token = max((number, token) for token, number in tokenizer.get_vocab().items())
    if last >= rows:
        raise InputError(
            f"{source}: the tokenizer has {last + 1} tokens, up to {token!r}, but the model has "
            f"{rows} embeddings: they belong to different models (or resize_token_embeddings was "
            "not called)"
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
        f"{source} has no trained scoring head{weights}, its scores would be random; fine-tune it "
        "first (rerank-plugin train), or use a reranker"
    )
