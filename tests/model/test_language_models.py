"""Language models as rerankers: their scores are those of the makers' own code."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rerank_plugin import InputError, Reranker
from rerank_plugin.engine.encoder import PairEncoder
from rerank_plugin.errors import OptionError
from rerank_plugin.model.loading import load_model
from rerank_plugin.model.prompts import MAKERS, Prompt, chat_template
from tests.factories import (
    CAUSAL_FAMILIES,
    build_language_model,
    causal_config,
    sample_texts,
    train_chat_tokenizer,
)

QWEN = MAKERS["qwen3-reranker"]
TEMPLATE = QWEN.prompt.chat_template
SHORT = chat_template(
    "<|im_start|>user\nQuery: {query}\nDocument: {document}<|im_end|>\nyes or no?"
)

#: Pairs of many lengths, and documents that are cut.
PAIRS = [
    (f"What is refund {i}?\n", " ".join(sample_texts()[i : i + 2])[: 25 * (i + 1)])
    for i in range(8)
]

#: Ids of a pair, in a test's copy of the makers' code.
Encode = Callable[[Any, str, str], list[int]]


def scores(folder: Path, **options: Any) -> Any:
    options = {"device": "cpu", "dtype": "float32", "normalize": "none", **options}
    return Reranker(folder, **options).score(PAIRS)


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def makers_scores(folder: Path, encode: Encode, true: str, false: str | None) -> Any:
    """Score left-padded pairs with the logits over the whole vocabulary, as the makers do."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pairs = [encode(tokenizer, *pair) for pair in PAIRS]
    longest = max(map(len, pairs))
    padded = torch.tensor([[tokenizer.pad_token_id] * (longest - len(p)) + p for p in pairs])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in pairs])
    with torch.no_grad():
        logits = model(input_ids=padded, attention_mask=mask).logits[:, -1]
    score = logits[:, tokenizer.convert_tokens_to_ids(true)]
    if false is not None:
        both = torch.stack([logits[:, tokenizer.convert_tokens_to_ids(false)], score], 1)
        log_odds = torch.nn.functional.log_softmax(both, 1)
        score = log_odds[:, 1] - log_odds[:, 0]
    return score.numpy()


def qwen_ids(tokenizer: Any, query: str, document: str) -> list[int]:
    prefix, _, suffix = QWEN.pieces
    text = f"<Instruct>: {QWEN.instruction}\n<Query>: {query}\n<Document>: {document}"
    start, end = ids(tokenizer, prefix), ids(tokenizer, suffix)
    return start + ids(tokenizer, text)[: 200 - len(start) - len(end)] + end


def gemma_ids(tokenizer: Any, query: str, document: str) -> list[int]:
    separator, prompt = (
        ids(tokenizer, "\n"),
        ids(tokenizer, MAKERS["bge-reranker-v2-gemma"].pieces[-1]),
    )
    pair = [tokenizer.bos_token_id, *ids(tokenizer, f"A: {query}")]
    pair = (pair + separator + ids(tokenizer, f"B: {document}"))[: 250 - 1 - len(prompt)]
    return pair + separator + prompt


def mxbai_ids(tokenizer: Any, query: str, document: str) -> list[int]:
    prefix, _, separator, _, _, task, suffix = (
        ids(tokenizer, piece) for piece in MAKERS["mxbai-rerank-v2"].pieces
    )
    fixed = len(prefix) + len(separator) + len(task) + len(suffix)
    pair = ids(tokenizer, f"query: {query}") + separator + ids(tokenizer, f"document: {document}")
    return prefix + pair[: 280 - fixed] + separator + task + suffix


@pytest.mark.parametrize(
    ("name", "family", "encode", "max_length"),
    [
        ("Qwen3-Reranker-0.6B", "qwen3", qwen_ids, 200),
        ("bge-reranker-v2-gemma", "gemma", gemma_ids, 250),
        ("mxbai-rerank-base-v2", "qwen2", mxbai_ids, 280),
    ],
)
def test_original_repositories_score_as_their_makers_do(
    tmp_path: Path, name: str, family: str, encode: Encode, max_length: int
) -> None:
    folder = build_language_model(tmp_path / name, family)
    maker = next(m for m in MAKERS.values() if m.model_type == family)
    expected = makers_scores(folder, encode, *maker.tokens)
    lengths = [len(encode(AutoTokenizer.from_pretrained(folder), *pair)) for pair in PAIRS]
    assert min(lengths) < max(lengths) == max_length, "short pairs, and one that is cut"
    np.testing.assert_allclose(scores(folder, max_length=max_length), expected, atol=1e-4)


def logit_score_folder(folder: Path, source: Path, true: str, false: str | None) -> Any:
    """Save a language model as sentence-transformers does, and return its CrossEncoder."""
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.base.modules")
    scores = pytest.importorskip("sentence_transformers.cross_encoder.modules")
    transformer = modules.Transformer(str(source), transformer_task="text-generation")
    tokens = transformer.tokenizer.convert_tokens_to_ids
    score = scores.LogitScore(tokens(true), None if false is None else tokens(false))
    encoder = library.CrossEncoder(modules=[transformer, score], device="cpu")
    encoder.save_pretrained(str(folder))
    return encoder


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
@pytest.mark.parametrize(("false", "tied"), [("no", False), (None, True)])
def test_logit_scores_are_those_of_cross_encoder(
    tmp_path: Path, family: str, false: str | None, tied: bool
) -> None:
    source = build_language_model(
        tmp_path / "source", family, chat_template=TEMPLATE, kind="qwen", tie_word_embeddings=tied
    )
    encoder = logit_score_folder(tmp_path / "model", source, "yes", false)
    encoder.max_seq_length = 200
    expected = encoder.predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(scores(tmp_path / "model", max_length=200), expected, atol=1e-4)


@given(
    query=st.text(st.sampled_from("ab ?.\n1'é（"), min_size=1, max_size=8),
    document=st.text(st.sampled_from("ab ?.\n1'é（"), max_size=30),
    template=st.sampled_from(
        [TEMPLATE, SHORT, MAKERS["bge-reranker-v2-gemma"].prompt.chat_template]
    ),
    kind=st.sampled_from(["qwen", "gemma", "llama2"]),
)
@settings(deadline=None, max_examples=60)
def test_a_pair_has_the_tokens_of_its_rendered_text(
    query: str, document: str, template: str, kind: str
) -> None:
    tokenizer = TOKENIZERS.setdefault(kind, train_chat_tokenizer(kind))
    messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template)
    encoder = PairEncoder(tokenizer, max_length=2000, prompt=Prompt(template))
    (pair,) = encoder.encode([(query, document)])
    assert pair.ids.tolist() == ids(tokenizer, text)
    assert 0 < pair.shared < len(pair)


TOKENIZERS: dict[str, Any] = {}


def test_a_long_pair_keeps_query_and_prompt() -> None:
    tokenizer = train_chat_tokenizer()
    encoder = PairEncoder(tokenizer, max_length=60, prompt=Prompt(SHORT))
    template = encoder.template()
    (whole,) = encoder.encode([("What?", "a")])
    (cut,) = encoder.encode([("What?", "a ferry " * 50)])
    assert len(cut) == 60
    end = len(template.document_end) + len(template.suffix)
    assert cut.ids[-end:].tolist() == whole.ids[-end:].tolist()
    assert cut.ids[: cut.shared].tolist() == whole.ids[: whole.shared].tolist()
    windows = PairEncoder(
        tokenizer, max_length=60, prompt=Prompt(SHORT), long_documents="windows"
    ).windows([("What?", "a ferry " * 50)])[0]
    assert len(windows) > 1
    assert {len(window) for window in windows} == {60}
    assert all(window.ids[-end:].tolist() == cut.ids[-end:].tolist() for window in windows)


def test_a_query_longer_than_the_model_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    encoder = PairEncoder(train_chat_tokenizer(), max_length=60, prompt=Prompt(SHORT))
    (pair,) = encoder.encode([("a long question " * 100, "a long answer " * 100)])
    assert len(pair) == 60
    assert "a query of" in caplog.text
    assert "answer" in encoder.tokenizer.decode(pair.ids)


def test_a_prompt_counts_for_the_longest_pair() -> None:
    tokenizer = train_chat_tokenizer()
    tokens = PairEncoder(tokenizer, max_length=500, prompt=Prompt(SHORT)).template().prompt_tokens
    with pytest.raises(
        OptionError, match=f"{tokens} leaves no room for a document beside the prompt"
    ):
        PairEncoder(tokenizer, max_length=tokens, prompt=Prompt(SHORT), option="max_len")


def test_white_space_that_a_template_strips_is_not_scored() -> None:
    template = TEMPLATE.replace("~ query ~", "~ query | trim ~").replace(
        "~ document ~", "~ document | trim ~"
    )
    tokenizer = train_chat_tokenizer()
    stripping = PairEncoder(tokenizer, max_length=500, prompt=Prompt(template))
    plain = PairEncoder(tokenizer, max_length=500, prompt=Prompt(TEMPLATE))
    (stripped,) = stripping.encode([(" who? \n", "\n me ")])
    assert stripped.ids.tolist() == plain.encode([("who?", "me")])[0].ids.tolist()


def test_an_instruction_changes_the_prompt() -> None:
    tokenizer = train_chat_tokenizer()
    encoder = PairEncoder(tokenizer, max_length=500, prompt=QWEN.prompt)
    default, other = encoder.encode([("who?", "me"), ("who?", "me", "Find the owner.")])
    assert str(QWEN.instruction) in tokenizer.decode(default.ids)
    assert "<Instruct>: Find the owner.\n" in tokenizer.decode(other.ids)
    with pytest.raises(OptionError, match="no room for one"):
        PairEncoder(tokenizer, max_length=500, prompt=Prompt(SHORT), instruction="Find it.")


def test_a_classifier_with_the_prompt_of_its_maker(tmp_path: Path) -> None:
    folder = build_language_model(tmp_path / "Qwen3-Reranker-0.6B", "qwen3")
    expected = scores(folder, max_length=200)
    converted = tmp_path / "Qwen3-Reranker-0.6B-seq-cls"
    loaded = load_model(folder)
    loaded.model.save_pretrained(converted)
    loaded.tokenizer.save_pretrained(converted)
    assert "Qwen3ForSequenceClassification" in (converted / "config.json").read_text()
    np.testing.assert_allclose(scores(converted, max_length=200), expected, atol=1e-5)
    stock = AutoModelForSequenceClassification.from_pretrained(converted)
    assert stock.score.weight.shape == (1, 32)
    unknown = shutil.copytree(converted, tmp_path / "converted")
    with pytest.raises(InputError, match="whose prompt for queries and documents is not known"):
        Reranker(unknown)


def edited(name: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")

    return edit


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, "utf-8")


def template(text: str) -> Callable[[Path], object]:
    return written("chat_template.jinja", text)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no roles": (template("{{ messages[0].role }}"), "its chat template has no roles 'query'"),
    "an error": (template("{{ raise_exception('roles') }}"), "no roles 'query'"),
    "a query alone": (template("{{ messages[0].content }}"), "no roles 'query'"),
    "reversed": (template("{{ messages[1].content ~ messages[0].content }}"), "before the query"),
    "underscores": (
        template("{{ messages[0].content ~ '-' ~ messages[1].content | replace(' ', '_') }}"),
        "changes the query or the document",
    ),
    "no such token": (edited("1_LogitScore/config.json", true_token_id=9999), "numbers below"),
    "no token": (edited("1_LogitScore/config.json", true_token_id=None), "numbers below"),
    "another module": (
        written(
            "modules.json",
            '[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": ""}]',
        ),
        "modules.json has Transformer, Dense",
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    source = build_language_model(folder / "source", "llama", chat_template=TEMPLATE)
    logit_score_folder(folder / "saved", source, "yes", "no")
    return folder / "saved"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_one_line(saved: Path, tmp_path: Path, name: str) -> None:
    change, expected = REFUSED[name]
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    change(folder)
    with pytest.raises(InputError, match=expected) as error:
        Reranker(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_a_language_model_is_a_base_but_no_reranker(tmp_path: Path) -> None:
    folder = build_language_model(tmp_path / "model", "llama")
    with pytest.raises(InputError, match=r"fine-tune it first \(rerank-plugin train\)"):
        Reranker(folder, device="cpu")
    loaded = load_model(folder, new_head=True, scoring_tokens=("Yes", None))
    assert loaded.prompt is not None
    assert '"Yes".' in loaded.prompt.chat_template.replace('\\"', '"')
    output = AutoModelForCausalLM.from_pretrained(folder).lm_head.weight
    head: Any = loaded.model.get_submodule("score")
    token: Any = loaded.tokenizer.convert_tokens_to_ids("Yes")
    assert torch.equal(head.weight, output[token : token + 1])
    for tokens in (("yesyesno", "no"), ("☃☃", None)):
        with pytest.raises(OptionError, match=r"scoring_tokens: .* is not one token of"):
            load_model(folder, new_head=True, scoring_tokens=tokens)


def test_the_chat_template_of_a_base_is_its_prompt(tmp_path: Path) -> None:
    chat = (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    folder = build_language_model(tmp_path / "model", "llama", chat_template=chat)
    loaded = load_model(folder, new_head=True)
    assert loaded.prompt is not None
    encoder = PairEncoder(loaded.tokenizer, max_length=500, prompt=loaded.prompt)
    text = str(encoder.tokenizer.decode(encoder.encode([("who?", "me")])[0].ids))
    assert text.startswith("<|im_start|>system\nJudge whether")
    assert text.endswith("\n<Query>: who?\n<Document>: me<|im_end|>\n<|im_start|>assistant\n")


def test_a_model_without_a_pad_token_scores(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    edited("config.json", pad_token_id=None)(folder)
    edited("tokenizer_config.json", pad_token=None)(folder)
    assert load_model(folder).tokenizer.pad_token is None
    np.testing.assert_array_equal(scores(folder), scores(saved))


def test_the_prompt_of_pieces_is_saved_as_one_text() -> None:
    prompt = MAKERS["mxbai-rerank-v2"].prompt
    tokenizer = train_chat_tokenizer()
    texts = prompt.as_saved.texts(tokenizer, "Find it.")
    whole = "".join([*texts.prefix, *texts.query, *texts.middle, *texts.document, *texts.suffix])
    assert "instruction: Find it.\nquery: \ndocument: \nYou are" in whole
    assert replace(prompt, pieces=None) == prompt.as_saved
    assert causal_config("qwen2", tokenizer).model_type == "qwen2"


def adapter_folder(folder: Path, base: Path, tokens: tuple[str, str | None]) -> Path:
    """Save a LoRA adapter with a changed head, and the prompt of the base beside it."""
    from peft import LoraConfig, TaskType, get_peft_model

    loaded = load_model(base, new_head=True, scoring_tokens=tokens)
    assert loaded.prompt is not None
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj", "up_proj"])
    adapted: Any = get_peft_model(loaded.model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    loaded.tokenizer.chat_template = loaded.prompt.chat_template
    loaded.tokenizer.save_pretrained(folder)
    return folder


def test_adapters_bring_their_head_and_their_prompt(tmp_path: Path) -> None:
    base = build_language_model(tmp_path / "model", "qwen2")
    first = adapter_folder(tmp_path / "first", base, ("Yes", "No"))
    alone = scores(first)
    many = Reranker(
        base, adapters={"first": first}, device="cpu", dtype="float32", normalize="none"
    )
    np.testing.assert_allclose(many.score(PAIRS, adapter="first"), alone, atol=1e-4)
    with pytest.raises(InputError, match="no trained scoring head"):
        many.score(PAIRS)
    other = adapter_folder(tmp_path / "other", base, ("1", "0"))
    with pytest.raises(InputError, match="trained with different prompts"):
        Reranker(base, adapters={"first": first, "other": other}, device="cpu")
