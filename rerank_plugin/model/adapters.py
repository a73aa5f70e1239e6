"""LoRA adapters: check their folders, merge one into its base, or load many on one base."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from rerank_plugin.errors import InputError, invalid_choice
from rerank_plugin.extras import require
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.checks import check_stored
from rerank_plugin.model.fingerprint import weights_fingerprint
from rerank_plugin.model.head import Float32Linear
from rerank_plugin.model.loaded import LoadedModel, one_line_errors, quiet_transformers
from rerank_plugin.model.settings import ADAPTER, RerankSettings, is_adapter, read_object

WEIGHTS = "adapter_model.safetensors"

#: Loads a base from its folder, to compare its weights with another one's.
LoadBase = Callable[[Path], LoadedModel]


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the configuration that PEFT saves with an adapter."""
    return read_object(folder / ADAPTER)


def base_of(folder: Path) -> str:
    """Return the base model that an adapter folder names."""
    base = read_adapter_config(folder).get("base_model_name_or_path")
    if not base:
        raise InputError(f"{folder}/{ADAPTER}: 'base_model_name_or_path' is missing")
    if not isinstance(base, str):
        raise InputError(f"{folder}/{ADAPTER}: 'base_model_name_or_path' must be a string")
    return base


@dataclass(frozen=True)
class Base:
    """The properties by which an adapter knows its base, taken before adapters are loaded on it."""

    #: The hub id or folder that it was loaded from.
    name: str
    #: A hash of the first values of all weights in its checkpoint.
    fingerprint: str
    #: Names of the weights that are not in its checkpoint.
    new_weights: tuple[str, ...]

    @classmethod
    def from_model(cls, loaded: LoadedModel, name: str | Path) -> Self:
        """Return a model that was just loaded as a base."""
        other = {*loaded.new_weights, *loaded.derived_weights}
        weights = sorted(loaded.model.state_dict().items())
        fingerprint = weights_fingerprint((key, w) for key, w in weights if key not in other)
        return cls(str(name), fingerprint, loaded.new_weights)

    def check(self, folder: Path, load: LoadBase) -> None:
        """Check that an adapter was trained for this base and has the weights that it lacks.

        Raises:
            InputError: not an adapter, an adapter for another base, or one without a scoring head.
        """
        check_adapter_folder(folder)
        trained_for, expected = base_of(folder), RerankSettings.read(folder).base_fingerprint
        same_name = Path(trained_for).name == Path(self.name).name
        # An adapter of another library has only the name or the folder of its base.
        expected = expected or self._fingerprint_of(trained_for, load)
        if expected not in (None, self.fingerprint):
            how = "which has changed since" if same_name else f"not for {self.name}"
            raise InputError(f"{folder}: the adapter was trained for {trained_for}, {how}")
        if expected is None and not same_name:
            raise InputError(
                f"{folder}: the adapter was trained for {trained_for}, not for {self.name} "
                f"(if they are the same model, edit {ADAPTER})"
            )
        check_has_weights(folder, self.new_weights, self.name)

    def _fingerprint_of(self, other: str, load: LoadBase) -> str | None:
        """Return the fingerprint of a base in another folder; None if there is no such folder."""
        folder = expanded(other)
        if not folder.is_dir():
            return None
        base = expanded(self.name)
        if base.is_dir() and base.samefile(folder):
            return self.fingerprint
        return type(self).from_model(load(folder), folder).fingerprint


def check_adapter_folder(folder: Path) -> None:
    """Check that a folder has the files of an adapter.

    Raises:
        InputError: one is missing, or a pointer of git-lfs.
    """
    if not is_adapter(folder):
        raise InputError(f"{folder}: not a LoRA adapter folder ({ADAPTER} not found)")
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder}: {WEIGHTS} not found")
    check_stored(folder)


def check_has_weights(folder: Path, needed: Sequence[str], base: str) -> None:
    """Check that an adapter has the weights that its base lacks.

    Raises:
        InputError: one is missing. The head of a plain encoder is random, and so would be scores.
    """
    saved = weight_names(folder)
    for weight in needed:
        if not any(key.endswith(f".{weight}") for key in saved):
            raise InputError(f"{folder}: neither the adapter nor its base {base} has {weight}")


def weight_names(folder: Path) -> set[str]:
    """Return the names of the weights in an adapter folder."""
    from safetensors import safe_open

    with one_line_errors(str(folder)), safe_open(folder / WEIGHTS, framework="pt") as file:
        return set(file.keys())


def check_all_loaded(model: nn.Module, folder: Path, peft_name: str) -> None:
    """Check that a model has loaded every weight of an adapter, and needs no others.

    Raises:
        InputError: weights are missing or were not loaded, which PEFT only warns about.
    """
    needed = require("peft").get_peft_model_state_dict(
        model, adapter_name=peft_name, save_embedding_layers=False
    )
    # Weights of the base may be saved, too.
    different = sorted((weight_names(folder) ^ set(needed)) - set(model.state_dict()))
    if different:
        raise InputError(
            f"{folder}: {len(different)} weights of the adapter are missing or not loaded, such as "
            f"{different[0]}: it is for a model with other layers"
        )


def merge_into_base(
    loaded: LoadedModel, folder: Path, name: str | Path, load: LoadBase
) -> LoadedModel:
    """Merge an adapter into a base, which was loaded by its name; raises as `Base.check`."""
    peft_model = require("peft").PeftModel
    Base.from_model(loaded, name).check(folder, load)
    with one_line_errors(str(folder)), quiet_transformers():
        adapted = peft_model.from_pretrained(loaded.model, str(folder))
    check_all_loaded(adapted, folder, "default")
    model: Any = adapted.merge_and_unload()
    # PEFT freezes what it wraps; a merged model can be trained like any other.
    model.requires_grad_(True)
    return replace(loaded, model=model.eval(), new_weights=(), derived_weights=(), is_reranker=True)


@dataclass
class ActiveAdapter:
    """PEFT's name of the active adapter; None for the base alone."""

    name: str | None = None


class Adapters:
    """Adapters on one base, one of which is active at a time; at first none is.

    The base is not copied: each adapter adds its weights, and its head if it has one.

    Args:
        loaded: The base; they are loaded on it, in place.
        name: The hub id or folder of the base.
        folders: Adapter folders, by the names that calls choose them by.
        load: Loads another base, to compare it with this one.

    Raises:
        InputError: as `Base.check`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        name: str | Path,
        folders: Mapping[str, str | Path],
        load: LoadBase,
    ) -> None:
        peft_model = require("peft").PeftModel
        base = Base.from_model(loaded, name)
        self.base_scores = loaded.is_reranker and not loaded.has_new_head
        self.settings: dict[str, RerankSettings] = {}
        self.active = ActiveAdapter()
        # PEFT's names of them, in which it allows no dots.
        self._peft_names = {adapter: f"adapter{i}" for i, adapter in enumerate(folders)}
        model: Any = None
        for adapter, peft_name in self._peft_names.items():
            folder = expanded(folders[adapter])
            base.check(folder, load)
            if read_adapter_config(folder).get("bias", "none") != "none":
                # They replace those of the base for every other adapter, too.
                raise InputError(
                    f"{folder}: the adapter changes biases of the base: load it alone, or merge it"
                )
            self.settings[adapter] = RerankSettings.read(folder)
            with one_line_errors(str(folder)), quiet_transformers():
                if model is None:
                    model = peft_model.from_pretrained(loaded.model, str(folder), peft_name)
                else:
                    model.load_adapter(str(folder), peft_name)
            check_all_loaded(model, folder, peft_name)
        self._tuner = model.base_model
        self._tuner.disable_adapter_layers()

    def checked(self, adapter: str | None) -> str | None:
        """Return the name of an adapter, or None for a base that can score alone.

        Raises:
            InputError: there is no such adapter, or the base cannot score.
        """
        known = ", ".join(self._peft_names)
        if adapter is None and not self.base_scores:
            problem = "the base has no trained scoring head"
            raise InputError(f"adapter: {problem} (choose an adapter from {known})")
        if adapter is not None and adapter not in self._peft_names:
            raise InputError(f"adapter: {invalid_choice(adapter, self._peft_names)}")
        return adapter

    def use(self, adapter: str | None) -> None:
        """Activate an adapter, or none for the base alone."""
        peft_name = None if adapter is None else self._peft_names[adapter]
        if peft_name == self.active.name:
            return
        if peft_name is None:
            self._tuner.disable_adapter_layers()
        else:
            if self.active.name is None:
                self._tuner.enable_adapter_layers()
            self._tuner.set_adapter(peft_name, inference_mode=True)
        self.active.name = peft_name


def low_rank_factors(layer: nn.Module) -> dict[str, tuple[Tensor, Tensor]] | None:
    """Return the factors of a linear layer's adapters, by PEFT's names: `x @ down.T @ up.T`.

    `down` is `[rank, in]` and `up`, times the adapter's scale, `[out, rank]`. Without adapters
    there are none; None if an adapter is more than such a product (DoRA, a bias).
    """
    downs = getattr(layer, "lora_A", None)
    if downs is None:
        return {} if type(layer) in (nn.Linear, Float32Linear) else None
    lora: Any = layer
    if lora.lora_variant or any(lora.lora_bias.values()):
        return None
    return {
        name: (down.weight, lora.lora_B[name].weight * lora.scaling[name])
        for name, down in downs.items()
    }
