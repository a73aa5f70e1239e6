"""The scoring head of a modular reranker: the modules that sentence-transformers lists.

`modules.json` lists a Transformer and a Pooling, whose output the other modules turn into a score
one after the other. What a module computes is in its `config.json`, by the names below.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Self

import torch
from torch import Tensor, nn

from rerank_plugin.errors import InputError
from rerank_plugin.model.files import model_json, model_object

MODULE_LIST = "modules.json"

#: The files with the settings of a Transformer, and of all of a `CrossEncoder`.
TRANSFORMER_FILE = "sentence_bert_config.json"
CROSS_ENCODER_FILE = "config_sentence_transformers.json"

#: The package whose classes are known; a class of another one may have the same name.
PACKAGE = "sentence_transformers"

#: The names under which modules hand tensors to each other.
POOLED, SCORES = "sentence_embedding", "scores"

#: What a Transformer is to do: to give the last hidden states of pairs that are encoded as text.
TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
TRANSFORMER_SETTINGS = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": TEXT},
    "module_output_name": "token_embeddings",
}

#: Settings of a Transformer that do not change what a short pair is scored.
LENGTH_AND_SPEED = {
    *("max_seq_length", "query_length", "document_length", "query_expansion", "unpad_inputs"),
    *("padding", "truncation", "max_length", "pad_to_multiple_of"),
    *("add_pooling_layer", "attn_implementation", "dtype", "torch_dtype", "model_max_length"),
}

#: Settings of a Transformer that are objects of settings.
NESTED = {
    *("processing_kwargs", "text", "common"),
    *("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs"),
}

#: The pooling modes that are known, by the older keys for them.
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLINGS = ("cls", "mean")

#: The settings of a Dense.
DENSE_KEYS = {
    "in_features",
    "out_features",
    "bias",
    "activation_function",
    "use_residual",
    "module_input_name",
    "module_output_name",
}

#: The activation functions of torch that have neither weights nor settings that must be known.
ACTIVATION_FUNCTIONS = {
    "ELU",
    "GELU",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "Mish",
    "ReLU",
    "ReLU6",
    "SELU",
    "Sigmoid",
    "SiLU",
    "Softplus",
    "Softsign",
    "Tanh",
}
DEFAULT_ACTIVATION = "torch.nn.Tanh"


@dataclass(frozen=True)
class ListedModule:
    """A module in the list of `modules.json`."""

    #: The name of its class, without the package.
    kind: str
    #: The folder of its files, "" for the model's own.
    folder: str
    #: Whether sentence-transformers has the class.
    is_known: bool

    def file(self, name: str) -> str:
        """Return the name of one of its files, from the folder of the model."""
        return f"{self.folder}/{name}" if self.folder else name


class DenseModule(nn.Module):
    """A linear layer and an activation function, plus its input if it is residual.

    Args:
        in_features: The size of the input.
        out_features: The size of the output.
        bias: Whether the layer has a bias.
        activation: The activation function.
        residual: Whether the input is added to the output, by a second layer if sizes differ.
        output_name: What sentence-transformers calls the output.
    """

    kind = "Dense"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: nn.Module,
        residual: bool = False,
        output_name: str = POOLED,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation_function = activation
        self.is_residual = residual
        if residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)
        self.output_name = output_name

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the module of a `config.json`, with newly initialised weights.

        Raises:
            ValueError: it does something else.
        """
        check_keys(config, DENSE_KEYS)
        input_name = config.get("module_input_name", POOLED)
        if input_name != POOLED:
            raise ValueError(f"reads {input_name!r}, expected {POOLED!r}")
        return cls(
            size(config, "in_features"),
            size(config, "out_features"),
            bias=bool(config.get("bias", True)),
            activation=activation(config.get("activation_function", DEFAULT_ACTIVATION)),
            residual=bool(config.get("use_residual", False)),
            output_name=config.get("module_output_name") or POOLED,
        )

    @property
    def sizes(self) -> tuple[int, int]:
        """Return the sizes of input and output."""
        return self.linear.in_features, self.linear.out_features

    @property
    def config(self) -> dict[str, Any]:
        """Return what sentence-transformers keeps in `config.json`."""
        kind = type(self.activation_function)
        config = {
            "in_features": self.linear.in_features,
            "out_features": self.linear.out_features,
            "bias": self.linear.bias is not None,
            "activation_function": f"{kind.__module__}.{kind.__qualname__}",
            "module_input_name": POOLED,
            "module_output_name": self.output_name,
        }
        # Older versions of sentence-transformers do not know it.
        return {**config, "use_residual": True} if self.is_residual else config

    def forward(self, pooled: Tensor) -> Tensor:
        """Apply the module, `[pairs, in_features]` to `[pairs, out_features]`."""
        out: Tensor = self.activation_function(self.linear(pooled))
        if not self.is_residual:
            return out
        return out + (self.residual(pooled) if hasattr(self, "residual") else pooled)


class LayerNormModule(nn.Module):
    """A layer norm that computes in float32, whatever the precision of its input and weights.

    Args:
        dimension: The size of input and output.
    """

    kind = "LayerNorm"
    output_name = POOLED

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the module of a `config.json`, with newly initialised weights.

        Raises:
            ValueError: it does something else.
        """
        check_keys(config, {"dimension"})
        return cls(size(config, "dimension"))

    @property
    def sizes(self) -> tuple[int, int]:
        """Return the sizes of input and output."""
        return self.norm.normalized_shape[0], self.norm.normalized_shape[0]

    @property
    def config(self) -> dict[str, Any]:
        """Return what sentence-transformers keeps in `config.json`."""
        return {"dimension": self.norm.normalized_shape[0]}

    def forward(self, pooled: Tensor) -> Tensor:
        """Apply the module, `[pairs, dimension]` of any precision to the same in float32."""
        weight, bias = self.norm.weight.float(), self.norm.bias.float()
        shape, epsilon = self.norm.normalized_shape, self.norm.eps
        return nn.functional.layer_norm(pooled.float(), shape, weight, bias, epsilon)


HeadModule = DenseModule | LayerNormModule

KINDS: dict[str, type[DenseModule] | type[LayerNormModule]] = {
    module.kind: module for module in (DenseModule, LayerNormModule)
}


@dataclass(frozen=True)
class ModularHead:
    """The modules after the transformer."""

    #: How the tokens of a pair become one vector: `cls` or `mean`.
    pooling: str
    #: The modules after the pooling, without weights, and their folders.
    modules: tuple[HeadModule, ...]
    folders: tuple[str, ...]


def read_modules(source: str, revision: str | None) -> list[ListedModule] | None:
    """Return the modules of a hub id or a folder; None if it has no `modules.json`.

    Raises:
        InputError: the file is not understood, or leads out of the folder.
    """
    listed = model_json(source, MODULE_LIST, revision)
    if listed is None:
        return None
    try:
        types = [str(module["type"]) for module in listed]
        folders = [str(module["path"]) for module in listed]
    except (KeyError, TypeError):
        raise InputError(f"{source}: {MODULE_LIST} is not a list of modules") from None
    for folder in folders:
        path = PurePosixPath(folder)
        if path.is_absolute() or ".." in path.parts or "\\" in folder:
            raise InputError(f"{source}: {MODULE_LIST} names {folder!r}, which is outside of it")
    return [
        ListedModule(
            kind.rpartition(".")[2],
            "" if folder == "." else folder,
            kind.startswith(f"{PACKAGE}."),
        )
        for kind, folder in zip(types, folders, strict=True)
    ]


def encoder_folder(source: str, revision: str | None) -> str:
    """Return the folder of a model's encoder, "" for the model's own."""
    modules = read_modules(source, revision)
    return modules[0].folder if modules and modules[0].kind == "Transformer" else ""


def read_head(
    source: str, listed: Sequence[ListedModule], hidden_size: int, revision: str | None
) -> ModularHead:
    """Return the head of a modular reranker, from the configurations of its modules.

    Args:
        source: A hub id or a folder.
        listed: The modules after the transformer.
        hidden_size: The size of the transformer's output.
        revision: Branch, tag or commit of a hub id.

    Raises:
        InputError: a module does something that is not supported.
    """
    pooling, *others = listed
    with naming_module(source, pooling):
        mode = read_pooling(pooling, module_config(source, pooling, revision))
    modules: list[HeadModule] = []
    width = hidden_size
    for listed_module in others:
        with naming_module(source, listed_module):
            module = build_module(listed_module, module_config(source, listed_module, revision))
            check_chain(module, width, is_last=listed_module is others[-1])
        modules.append(module)
        width = module.sizes[1]
    return ModularHead(mode, tuple(modules), tuple(module.folder for module in others))


@contextmanager
def naming_module(source: str, module: ListedModule) -> Iterator[None]:
    """Let an error name the model and the folder of a module."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{source}: {module.folder} (of {MODULE_LIST}) {error}") from None


def module_config(source: str, module: ListedModule, revision: str | None) -> dict[str, Any]:
    """Return the configuration of a module.

    Raises:
        ValueError: it has none.
    """
    config = model_object(source, module.file("config.json"), revision)
    if not config:
        raise ValueError("has no config.json")
    return config


def check_transformer(source: str, settings: dict[str, Any]) -> None:
    """Check the settings of the Transformer before a head, those of `sentence_bert_config.json`.

    Raises:
        InputError: one of them changes the scores.
    """
    values = {**TRANSFORMER_SETTINGS, **settings}
    modalities = values.pop("modality_config")
    values["text"] = modalities.get("text") if isinstance(modalities, dict) else modalities
    for key, value in values.items():
        if value != {**TRANSFORMER_SETTINGS, "text": TEXT}.get(key) and changes_scores(key, value):
            raise InputError(
                f"{source}: the Transformer has the setting {key}={value!r}, which is not supported"
            )


def changes_scores(key: str, value: object) -> bool:
    """Return whether a setting of a Transformer, or one in it, may change the scores."""
    if key in NESTED and isinstance(value, dict):
        return any(changes_scores(*setting) for setting in value.items())
    is_default = value is None or (key, value) == ("do_lower_case", False)
    return key not in LENGTH_AND_SPEED and not is_default


def read_pooling(module: ListedModule, config: dict[str, Any]) -> str:
    """Return the pooling mode of a Pooling's `config.json`, of the older or the newer form.

    Raises:
        ValueError: the module is something else, or pools otherwise.
    """
    if module.kind != "Pooling" or not module.is_known:
        raise ValueError("is not supported after the Transformer, expected a Pooling")
    renamed = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
    check_keys(config, {*renamed, *POOLING_KEYS})
    older = [mode for key, mode in POOLING_KEYS.items() if config.get(key)]
    mode = config.get("pooling_mode", older or "mean")
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    if mode not in POOLINGS:
        raise ValueError(f"pools by {mode}, which is not supported (only {' or '.join(POOLINGS)})")
    if not config.get("include_prompt", True):
        raise ValueError("leaves a prompt out of the pooling, and prompts are not supported")
    return str(mode)


def build_module(listed: ListedModule, config: dict[str, Any]) -> HeadModule:
    """Return a module after the pooling, without weights.

    Raises:
        ValueError: it is not supported.
    """
    if listed.kind not in KINDS or not listed.is_known:
        raise ValueError(f"is a {listed.kind}, which is not supported")
    # The weights are read later: drawing them would change what is drawn next.
    with torch.device("meta"):
        return KINDS[listed.kind].from_config(config)


def check_chain(module: HeadModule, width: int, *, is_last: bool) -> None:
    """Check that a module takes what the one before gives, and that the last gives one logit.

    Raises:
        ValueError: it does not.
    """
    if module.sizes[0] != width:
        raise ValueError(f"reads {module.sizes[0]} numbers, but gets {width}")
    expected = SCORES if is_last else POOLED
    if module.output_name != expected:
        raise ValueError(f"gives {module.output_name!r}, expected {expected!r}")
    if not isinstance(module, DenseModule) or not is_last:
        return
    if module.sizes[1] != 1:
        raise ValueError(f"gives {module.sizes[1]} scores, expected one")
    if type(module.activation_function) is not nn.Identity or module.is_residual:
        # Scale and bias of a calibration are folded into the linear layer.
        raise ValueError("changes the logit after its linear layer, which is not supported")


def check_keys(config: dict[str, Any], known: set[str]) -> None:
    """Check that a configuration has known keys alone.

    Raises:
        ValueError: it has others, which may change what the module computes.
    """
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f"has an unknown setting {unknown[0]!r} in its config.json")


def size(config: dict[str, Any], key: str) -> int:
    """Return a size in a configuration.

    Raises:
        ValueError: it is missing, or no whole number above 0.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"has {key} {value!r} in its config.json, expected a whole number")
    return value


def activation(name: object) -> nn.Module:
    """Return an activation function by the full name of its class.

    Raises:
        ValueError: it is not supported.
    """
    package, _, kind = str(name).rpartition(".")
    if kind not in ACTIVATION_FUNCTIONS or not package.startswith("torch.nn"):
        raise ValueError(f"has the activation function {name!r}, which is not supported")
    built: nn.Module = getattr(nn, kind)()
    return built
