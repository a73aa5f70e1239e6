"""The prompt of a language model, as a person reads it."""

from pathlib import Path

from rerank_plugin.info.recognition import maker_name
from rerank_plugin.info.result import PromptInfo
from rerank_plugin.model.adapters import base_of
from rerank_plugin.model.language_models import saved_prompt
from rerank_plugin.model.loaded import LoadedModel
from rerank_plugin.model.prompts import PromptTexts
from rerank_plugin.model.settings import is_adapter

#: An instruction that shows where a prompt has one.
MARKER = "markedinstruction"


def prompt_info(source: str, loaded: LoadedModel, revision: str | None) -> PromptInfo | None:
    """Return the prompt of a model; None for an encoder."""
    if loaded.prompt is None:
        return None
    return PromptInfo(
        text=readable(loaded.prompt.texts(loaded.tokenizer)),
        source=prompt_source(source, loaded, revision),
        takes_instruction=loaded.prompt.takes_instruction(loaded.tokenizer),
        instruction=prompt_instruction(loaded),
    )


def readable(texts: PromptTexts) -> str:
    """Return the texts of a prompt as one, around `{query}` and `{document}`."""
    query, document = "{query}".join(texts.query), "{document}".join(texts.document)
    return "".join([*texts.prefix, query, *texts.middle, document, *texts.suffix])


def prompt_source(source: str, loaded: LoadedModel, revision: str | None) -> str:
    """Return where the prompt of a model is from."""
    if saved_prompt(source, loaded.tokenizer, revision) is not None:
        return "its chat template"
    base = base_of(Path(source)) if is_adapter(source) else source
    maker = maker_name(base, loaded.model.config)
    return f"the prompts of makers ({maker})" if maker else "its base"


def prompt_instruction(loaded: LoadedModel) -> str | None:
    """Return the instruction of pairs without one: what is in the place of another."""
    prompt, tokenizer = loaded.prompt, loaded.tokenizer
    if prompt is None or not prompt.takes_instruction(tokenizer):
        return None
    before, after = readable(prompt.texts(tokenizer, MARKER)).split(MARKER)
    text = readable(prompt.texts(tokenizer))
    if not (text.startswith(before) and text.endswith(after)):
        return None
    return text[len(before) : len(text) - len(after)] or None
