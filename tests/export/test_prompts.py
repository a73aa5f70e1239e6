"""The prompt of a saved language model in other libraries: the same tokens and scores."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer

from rerank_plugin import Reranker, model_info
from rerank_plugin.errors import OptionError
from rerank_plugin.finetune.export.model_card import model_card
from rerank_plugin.finetune.export.model_folder import prepare_tokenizer, save_plain
from rerank_plugin.model.loading import load_model
from rerank_plugin.model.prompts import MAKERS
from rerank_plugin.model.settings import RerankSettings

from ..factories import build_language_model, train_chat_tokenizer

PAIRS = [("when does it sail", text) for text in ("at noon", "a refund\n", " a cabin for two")]
INSTRUCTION = 'Find the "owner" of a \u26f4 \U0001f600, \\n {{ and %} too.\nAll of them.'

#: How templates read messages: as texts, or as lists of parts.
STRUCTURED = (
    "{% for m in messages %}{{ m.role ~ ': ' }}{% for part in m.content %}{{ part.text }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)
FLAT = "\n  {% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}\n"


def saved(folder: Path, name: str, family: str, instruction: str | None = None) -> Path:
    """Save a language model as a run does, with an instruction that its prompt does not have."""
    loaded = load_model(build_language_model(folder / name, family))
    assert loaded.prompt is not None
    prompt = replace(loaded.prompt.as_saved, instruction=instruction)
    loaded = replace(loaded, prompt=prompt)
    prepare_tokenizer(loaded, 400)
    save_plain(loaded, folder / "saved")
    return folder / "saved"


def ids_of_vllm(folder: Path, query: str, document: str, **options: Any) -> list[int]:
    """The tokens of a pair as `vllm serve --chat-template` encodes it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = (folder / "chat_template.jinja").read_text("utf-8")
    messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template)
    return list(tokenizer(text, **options)["input_ids"])


@pytest.mark.parametrize(
    ("name", "family", "instruction"),
    [
        ("Qwen3-Reranker-0.6B", "qwen3", None),
        ("Qwen3-Reranker-0.6B", "qwen3", INSTRUCTION),
        ("mxbai-rerank-base-v2", "qwen2", INSTRUCTION),
        ("bge-reranker-v2-gemma", "gemma", None),
    ],
)
def test_other_libraries_score_the_same(
    tmp_path: Path, name: str, family: str, instruction: str | None
) -> None:
    folder = saved(tmp_path, name, family, instruction)
    reranker = Reranker(folder, device="cpu", dtype="float32", normalize="none")
    for pair, encoded in zip(PAIRS, reranker._scorer.encoder.encode(PAIRS), strict=True):
        assert encoded.ids.tolist() == ids_of_vllm(folder, *pair)
    info = model_info(folder)
    assert info.prompt is not None
    assert instruction in (None, info.prompt.instruction)
    # Older versions score without the chat template.
    pytest.importorskip("sentence_transformers.cross_encoder.modules")
    from sentence_transformers import CrossEncoder

    scores = CrossEncoder(str(folder), device="cpu").predict(
        PAIRS, activation_fn=torch.nn.Identity()
    )
    np.testing.assert_allclose(scores, reranker.score(PAIRS), atol=1e-4)


def test_a_tokenizer_adds_no_second_start_to_a_prompt(tmp_path: Path) -> None:
    build_language_model(tmp_path / "bge-reranker-v2-gemma", "gemma")
    tokenizer = train_chat_tokenizer("gemma")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(tmp_path / "bge-reranker-v2-gemma")
    loaded = load_model(tmp_path / "bge-reranker-v2-gemma")
    assert loaded.tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    prepare_tokenizer(loaded, 400)
    save_plain(loaded, tmp_path / "saved")
    ids = ids_of_vllm(tmp_path / "saved", *PAIRS[0])
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids == ids_of_vllm(tmp_path / "saved", *PAIRS[0], add_special_tokens=False)


@pytest.mark.parametrize("template", [FLAT, STRUCTURED])
def test_an_instruction_is_a_message_of_the_template(template: str) -> None:
    tokenizer, prompt = train_chat_tokenizer(), replace(MAKERS["qwen3-reranker"].prompt)
    prompt = replace(prompt, chat_template=template)
    changed = prompt.with_built_in_instruction(INSTRUCTION, tokenizer)
    assert changed.texts(tokenizer) == prompt.texts(tokenizer, INSTRUCTION)
    assert changed.texts(tokenizer, "Other.") == prompt.texts(tokenizer, "Other.")


def test_a_prompt_without_room_takes_no_instruction() -> None:
    tokenizer = train_chat_tokenizer("gemma")
    prompt = MAKERS["bge-reranker-v2-gemma"].prompt
    for call in (
        prompt.texts,
        lambda tokenizer, text: prompt.with_built_in_instruction(text, tokenizer),
    ):
        with pytest.raises(OptionError, match="no room for one"):
            call(tokenizer, "Find it.")


def test_the_card_of_a_language_model(tmp_path: Path) -> None:
    settings = RerankSettings(max_length=400)
    card: Any = model_card(tmp_path, settings, name="me/mine", labels=1, has_prompt=True)
    assert "vllm serve me/mine --runner pooling --chat-template chat_template.jinja" in card.text
    assert "prompt included, is truncated to 400 tokens" in card.text
    assert "FlagReranker" not in card.text
