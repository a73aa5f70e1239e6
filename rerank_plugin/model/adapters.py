"""LoRA adapters: what a folder of one must hold, and many of them on one base in memory."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from rerank_plugin.errors import InputError
from rerank_plugin.io.paths import expanded
from rerank_plugin.model.checks import check_stored
from rerank_plugin.model.head import Float32Linear
from rerank_plugin.model.loaded import LoadedModel, one_line_errors, quiet_transformers
from rerank_plugin.model.settings import ADAPTER, RerankSettings, is_adapter, read_object

WEIGHTS = "adapter_model.safetensors"

#: Loads a base from its folder, to compare its weights with another one's.
LoadBase = Callable[[Path], LoadedModel]

#: Values of each weight that tell a base from another one.
VALUES_A_WEIGHT = 64


def read_config(folder: Path) -> dict[str, Any]:
    """What PEFT writes about an adapter."""
    return read_object(folder / ADAPTER)


def base_of(folder: Path) -> str:
    """The base model that an adapter folder names."""
    base = read_config(folder).get("base_model_name_or_path")
    if not base:
        raise InputError(f"{folder}/{ADAPTER}: names no base_model_name_or_path")
    if not isinstance(base, str):
        raise InputError(f"{folder}/{ADAPTER}: 'base_model_name_or_path' must be a string")
    return base


@dataclass(frozen=True)
class Base:
    """What an adapter's base must be, taken before anything is put on it."""

    #: What it was loaded by.
    name: str
    #: A hash of the first values of all weights that its checkpoint has.
    fingerprint: str
    #: Names of the weights that it lacks.
    new_weights: tuple[str, ...]

    @classmethod
    def of(cls, loaded: LoadedModel, name: str | Path) -> Self:
        """A model that was just loaded, as a base."""
        digest = hashlib.sha256()
        for key, weight in sorted(loaded.model.state_dict().items()):
            if key not in loaded.new_weights:
                values = weight.flatten()[:VALUES_A_WEIGHT].float().cpu().numpy()
                digest.update(f"{key} {tuple(weight.shape)}".encode() + values.tobytes())
        return cls(str(name), digest.hexdigest()[:16], loaded.new_weights)

    def check(self, folder: Path, load: LoadBase) -> None:
        """Check that an adapter was trained for this base and has what it lacks.

        Raises:
            InputError: no adapter there, one for another base, or one without its scoring head.
        """
        if not is_adapter(folder):
            raise InputError(f"{folder}: no LoRA adapter folder, expected {ADAPTER}")
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"{folder}: the adapter has no {WEIGHTS}")
        check_stored(folder)
        trained_for, expected = base_of(folder), RerankSettings.read(folder).base_fingerprint
        same_name = Path(trained_for).name == Path(self.name).name
        # An adapter of another library knows no more than a name, or where the base stands.
        expected = expected or self._fingerprint_of(trained_for, load)
        if expected not in (None, self.fingerprint):
            how = "which has changed since" if same_name else f"not for {self.name}"
            raise InputError(f"{folder}: the adapter was trained for {trained_for}, {how}")
        if expected is None and not same_name:
            raise InputError(
                f"{folder}: the adapter was trained for {trained_for}, not for {self.name} "
                f"(if that is the same model, write its name into {ADAPTER})"
            )
        saved = weight_names(folder)
        # The head that a plain encoder gets is random, and so would be the scores.
        for weight in self.new_weights:
            if not any(key.endswith(f".{weight}") for key in saved):
                raise InputError(
                    f"{folder}: neither the adapter nor its base {self.name} has {weight}"
                )

    def _fingerprint_of(self, other: str, load: LoadBase) -> str | None:
        """The fingerprint of a base in another folder; none of one that is not there."""
        folder = expanded(other)
        if not folder.is_dir():
            return None
        own = expanded(self.name)
        if own.is_dir() and own.samefile(folder):
            return self.fingerprint
        return type(self).of(load(folder), folder).fingerprint


def weight_names(folder: Path) -> set[str]:
    """Return the names of the weights in an adapter folder."""
    from safetensors import safe_open

    with one_line_errors(str(folder)), safe_open(folder / WEIGHTS, framework="pt") as file:
        return set(file.keys())


def check_all_read(model: nn.Module, folder: Path, place: str) -> None:
    """Check that a model has taken over every weight of an adapter, and needs no others.

    Raises:
        InputError: weights are missing or were not read, which PEFT only warns about.
    """
    from peft import get_peft_model_state_dict

    needed = get_peft_model_state_dict(model, adapter_name=place, save_embedding_layers=False)
    # Weights of the base itself may be saved too.
    wrong = sorted((weight_names(folder) ^ set(needed)) - set(model.state_dict()))
    if wrong:
        raise InputError(
            f"{folder}: {len(wrong)} weights of the adapter are missing or not read, such as "
            f"{wrong[0]}: it is for a model with other layers"
        )


def merge(loaded: LoadedModel, folder: Path, name: str | Path, load: LoadBase) -> LoadedModel:
    """A base, loaded by its name, with an adapter merged into it; raises as `Base.check`."""
    from peft import PeftModel

    Base.of(loaded, name).check(folder, load)
    with one_line_errors(str(folder)), quiet_transformers():
        adapted = PeftModel.from_pretrained(loaded.model, str(folder))
    check_all_read(adapted, folder, "default")
    model: Any = adapted.merge_and_unload()
    # PEFT freezes what it wraps; a merged model can be trained like any other.
    model.requires_grad_(True)
    return LoadedModel(model.eval(), loaded.tokenizer, ())


@dataclass
class InUse:
    """The place of the adapter that is in use; none for the base alone."""

    place: str | None = None


class Adapters:
    """Adapters on one base, of which one at a time is in use; at first none is.

    The base is not copied: each adapter adds its own weights, and its head where it has one.

    Args:
        loaded: The base; gets them, in place.
        name: What it was loaded by.
        folders: Adapter folders, by the names under which they are asked for.
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
        from peft import PeftModel

        base = Base.of(loaded, name)
        self.base_scores = not loaded.has_new_head
        self.settings: dict[str, RerankSettings] = {}
        self.in_use = InUse()
        # Names of PEFT's, which takes no dots in one.
        self.places = {adapter: f"adapter{number}" for number, adapter in enumerate(folders)}
        model: Any = None
        for adapter, place in self.places.items():
            folder = expanded(folders[adapter])
            base.check(folder, load)
            if read_config(folder).get("bias", "none") != "none":
                # They are the base's own, in its place for every other adapter too.
                raise InputError(
                    f"{folder}: the adapter has biases of the base: load it alone, or merge it"
                )
            self.settings[adapter] = RerankSettings.read(folder)
            with one_line_errors(str(folder)), quiet_transformers():
                if model is None:
                    model = PeftModel.from_pretrained(loaded.model, str(folder), place)
                else:
                    model.load_adapter(str(folder), place)
            check_all_read(model, folder, place)
        self._tuner = model.base_model
        self._tuner.disable_adapter_layers()

    def checked(self, adapter: str | None) -> str | None:
        """A name that is one of the adapters', or none for a base that can score alone.

        Raises:
            InputError: it is neither.
        """
        known = ", ".join(self.places)
        if adapter is None and not self.base_scores:
            raise InputError(f"adapter: the base has no trained scoring head, choose of: {known}")
        if adapter is not None and adapter not in self.places:
            raise InputError(f"adapter: none is called {adapter!r}, there are: {known}")
        return adapter

    def use(self, adapter: str | None) -> None:
        """Let the model be the base with an adapter, or with none."""
        place = None if adapter is None else self.places[adapter]
        if place == self.in_use.place:
            return
        if place is None:
            self._tuner.disable_adapter_layers()
        else:
            if self.in_use.place is None:
                self._tuner.enable_adapter_layers()
            self._tuner.set_adapter(place, inference_mode=True)
        self.in_use.place = place


def low_rank_parts(layer: nn.Module) -> dict[str, tuple[Tensor, Tensor]] | None:
    """What a linear layer's adapters add to it, by their places: `x @ down.T @ up.T`.

    `down` is `[rank, in]` and `up`, times the adapter's scale, `[out, rank]`. Without adapters
    there are none; None where one is more than such a product (DoRA, a bias).
    """
    downs = getattr(layer, "lora_A", None)
    if downs is None:
        return {} if type(layer) in (nn.Linear, Float32Linear) else None
    lora: Any = layer
    if lora.lora_variant or any(lora.lora_bias.values()):
        return None
    return {
        place: (down.weight, lora.lora_B[place].weight * lora.scaling[place])
        for place, down in downs.items()
    }
