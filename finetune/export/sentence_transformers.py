"""The files by which sentence-transformers puts pairs into the prompt of a language model."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rerank_plugin.io.atomic import write_json
from rerank_plugin.model.head_modules import CROSS_ENCODER_FILE, MODULE_LIST, TRANSFORMER_FILE
from rerank_plugin.model.modular import CROSS_ENCODER, entry
from rerank_plugin.model.prompts import Prompt


def write_prompt_files(folder: Path, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the files of a `CrossEncoder` that reads pairs as messages of a chat.

    The chat template itself is saved with the tokenizer, and has the default instruction.

    Args:
        folder: A plain model folder, a sequence classifier on a language model.
        prompt: The model's prompt.
        tokenizer: Its tokenizer.
    """
    write_json(folder / MODULE_LIST, [entry(0, "Transformer", "")])
    logits = {"method": "forward", "method_output_name": "logits"}
    transformer: dict[str, Any] = {
        "transformer_task": "sequence-classification",
        "modality_config": {
            "text": logits,
            "message": logits | {"format": prompt.message_format(tokenizer)},
        },
        "module_output_name": "scores",
    }
    if prompt.options:
        transformer["processing_kwargs"] = {"chat_template": dict(prompt.options)}
    write_json(folder / TRANSFORMER_FILE, transformer)
    write_json(folder / CROSS_ENCODER_FILE, CROSS_ENCODER)
