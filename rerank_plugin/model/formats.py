"""The format of a model, found from its configuration before any weight is read.

A model in a format that is not supported is refused: its scores would be computed without its
prompt, or with another head.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GenericForSequenceClassification

from rerank_plugin.errors import InputError
from rerank_plugin.model.families import family_of
from rerank_plugin.model.files import model_object
from rerank_plugin.model.head_modules import (
    CROSS_ENCODER_FILE,
    TRANSFORMER_FILE,
    ListedModule,
    check_transformer,
    read_head,
    read_modules,
)

#: The advice for a model that is refused.
INSTEAD = "use an encoder reranker, such as BAAI/bge-reranker-base or BAAI/bge-reranker-v2-m3"

#: Suffixes of architectures that are an encoder without a scoring head.
ENCODERS = ("Model", "ForMaskedLM", "ForPreTraining", "LMHeadModel")

#: Modules of sentence-transformers that compute an embedding, not a score.
EMBEDDING_MODULES = {"Pooling", "Normalize", "Dropout"}

#: Tasks of sentence-transformers in which a pair is encoded as plain text.
TASKS = ("sequence-classification", "feature-extraction", "fill-mask")


class ModelFormat(StrEnum):
    """The kind of a model, which decides how a pair is scored."""

    #: The logit of one label, or the difference of two.
    SEQUENCE_CLASSIFIER = "sequence classifier"
    #: The logit of a token at the end of a prompt, mostly minus that of another one.
    LANGUAGE_MODEL = "language model"
    #: The same with these tokens' rows as a head of its own.
    CAUSAL_CLASSIFIER = "sequence classifier on a language model"
    #: It has no scores until it is trained with a newly initialised head.
    ENCODER = "encoder without a scoring head"
    #: What the modules after the encoder, which `modules.json` lists, make of its output.
    MODULAR_ENCODER = "modular encoder"

    @property
    def is_causal(self) -> bool:
        """Return whether pairs are put into a prompt, and each token sees only those before it."""
        return self in (ModelFormat.LANGUAGE_MODEL, ModelFormat.CAUSAL_CLASSIFIER)


def find_format(source: str, config: PreTrainedConfig, revision: str | None = None) -> ModelFormat:
    """Return the format of a model.

    A model whose config has no `architectures` counts as a sequence classifier: its weights decide.

    Args:
        source: A hub id or a folder.
        config: Its config.
        revision: Branch, tag or commit of a hub id.

    Raises:
        InputError: the format is not supported, or the scores of its family cannot be right.
    """
    if is_decoder(config):
        return causal_format(source, config, revision)
    listed = format_of_modules(source, config, revision)
    check_family(source, config)
    if listed is not None:
        return listed
    names = architectures(config)
    if not names or any(name.endswith("ForSequenceClassification") for name in names):
        return ModelFormat.SEQUENCE_CLASSIFIER
    if all(name.endswith(ENCODERS) for name in names):
        return ModelFormat.ENCODER
    raise InputError(
        f"{source}: a model of the architecture {', '.join(names)}, which does not give a pair one "
        f"score: {INSTEAD}"
    )


def causal_format(source: str, config: PreTrainedConfig, revision: str | None) -> ModelFormat:
    """Return the format of a language model.

    Raises:
        InputError: transformers has no sequence classifier for it, or a module would not be read.
    """
    names = architectures(config)
    if not is_generic_classifier(config):
        raise InputError(
            f"{source}: a causal language model ({', '.join(names) or config.model_type}), of a "
            f"family for which transformers has no sequence classifier: {INSTEAD}"
        )
    modules = read_modules(source, revision) or []
    kinds = [module.kind for module in modules]
    if modules and modules[0].folder:
        raise InputError(
            f"{source}: the language model is in a folder of its own ({modules[0].folder}), which "
            f"is not supported: {INSTEAD}"
        )
    if kinds not in ([], ["Transformer"], ["Transformer", "LogitScore"]):
        raise InputError(
            f"{source}: modules.json has {', '.join(kinds)}, of which a language model that scores "
            f"pairs has Transformer and LogitScore only: {INSTEAD}"
        )
    if any(name.endswith("ForSequenceClassification") for name in names):
        if "LogitScore" in kinds:
            raise InputError(f"{source}: a sequence classifier with LogitScore in modules.json")
        return ModelFormat.CAUSAL_CLASSIFIER
    return ModelFormat.LANGUAGE_MODEL


def logit_score(source: str, revision: str | None) -> dict[str, Any] | None:
    """Return the config of a model's LogitScore module; None if it has none."""
    for module in read_modules(source, revision) or []:
        if module.kind == "LogitScore":
            return model_object(source, f"{module.folder}/config.json", revision)
    return None


def architectures(config: PreTrainedConfig) -> list[str]:
    """Return the names of the classes that a model was saved from, if its config has them."""
    names = config.architectures or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"config.json: architectures is {names!r}, expected a list of names")
    return names


def format_of_modules(
    source: str, config: PreTrainedConfig, revision: str | None
) -> ModelFormat | None:
    """Return the format by the modules that sentence-transformers lists.

    None if it lists nothing beside an encoder, whose architecture then decides.

    Raises:
        InputError: there is a module that would not be read.
    """
    modules = read_modules(source, revision)
    if modules is None:
        return None
    kinds = [module.kind for module in modules]
    if not kinds or kinds[0] != "Transformer":
        raise InputError(
            f"{source}: modules.json begins with {(kinds or ['nothing'])[0]}, expected a "
            f"Transformer: {INSTEAD}"
        )
    if set(kinds[1:]) <= EMBEDDING_MODULES:
        check_text_inputs(source, modules[0], revision)
        return ModelFormat.ENCODER if kinds[1:] else None
    check_modular(source, config, modules, revision)
    return ModelFormat.MODULAR_ENCODER


def check_modular(
    source: str, config: PreTrainedConfig, modules: Sequence[ListedModule], revision: str | None
) -> None:
    """Check that the modules after an encoder are a scoring head that can be loaded.

    Raises:
        InputError: they are something else.
    """
    check_text_inputs(source, modules[0], revision)
    settings = model_object(source, modules[0].file(TRANSFORMER_FILE), revision)
    try:
        check_transformer(source, settings)
        read_head(source, modules[1:], int(config.hidden_size), revision)
    except InputError as error:
        raise InputError(f"{error}: {INSTEAD}") from None
    options = model_object(source, CROSS_ENCODER_FILE, revision)
    kind = options.get("model_type", "SentenceTransformer")
    if kind != "CrossEncoder":
        raise InputError(f"{source}: a {kind}, whose modules give no scores: {INSTEAD}")


def check_text_inputs(source: str, listed: ListedModule, revision: str | None) -> None:
    """Check that sentence-transformers hands texts to the encoder as they are.

    Raises:
        InputError: it puts a prompt before them or around them.
    """
    transformer = model_object(source, listed.file(TRANSFORMER_FILE), revision)
    task = transformer.get("transformer_task") or TASKS[0]
    if task not in TASKS:
        raise InputError(f"{source}: a model for the task {task}, which is not supported")
    if "message" in (transformer.get("modality_config") or {}):
        raise prompted(source, "reads pairs as messages of a chat")
    options = model_object(source, CROSS_ENCODER_FILE, revision)
    if options.get("model_type") == "CrossEncoder":
        name, prompts = options.get("default_prompt_name"), options.get("prompts") or {}
        if name is not None and prompts.get(name):
            raise prompted(source, f"puts the prompt {name!r} before every pair")


def check_family(source: str, config: PreTrainedConfig) -> None:
    """Check that a family of models gives a pair of texts one score, and always the same.

    Raises:
        InputError: it does not.
    """
    names = ", ".join(architectures(config) or [config.model_type])
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{source}: an encoder-decoder ({names}), no encoder: {INSTEAD}")
    if hasattr(config, "vision_config"):
        raise InputError(f"{source}: a model of texts and images ({names}): {INSTEAD}")
    refused = family_of(config).refused
    if refused:
        raise InputError(f"{source}: a {config.model_type} model is no reranker: {refused}")
    comes_with_code = bool(getattr(config, "auto_map", None))
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not comes_with_code:
        raise InputError(
            f"{source}: transformers has no sequence classifier for a {config.model_type} model: "
            f"{INSTEAD}"
        )


def is_decoder(config: PreTrainedConfig) -> bool:
    """Return whether each token of a model sees only those before it."""
    if any(name.endswith("ForCausalLM") for name in architectures(config)):
        return True
    if getattr(config, "is_decoder", False) or getattr(config, "causal", False):
        return True
    kind = type(config)
    # Encoders that also come as decoders, such as BERT, fill masks too.
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING:
        return not getattr(config, "is_encoder_decoder", False)
    return is_generic_classifier(config)


def is_generic_classifier(config: PreTrainedConfig) -> bool:
    """Return whether transformers' sequence classifier of a family is one of language models."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return False
    classifier: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    return issubclass(classifier, GenericForSequenceClassification)


def check_tokenizer(source: str, tokenizer: PreTrainedTokenizerBase, model_format: str) -> None:
    """Check that a model's tokenizer has no prompt of its own that would be left out.

    Raises:
        InputError: it has one.
    """
    if model_format == ModelFormat.SEQUENCE_CLASSIFIER and tokenizer.chat_template:
        raise prompted(source, "has a chat template")


def prompted(source: str, what: str) -> InputError:
    """Return the error for a model with a prompt."""
    return InputError(f"{source}: {what}, and prompts are not supported yet: {INSTEAD}")
