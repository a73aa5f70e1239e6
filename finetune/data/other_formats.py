"""Hints for records of other libraries that are not groups: what to rename, or how to convert."""

from collections.abc import Mapping

#: Names of the fields of a group in other libraries.
OTHER_NAMES = {
    "query": ("question", "anchor", "queries", "q", "search_query", "sentence1", "sentence_a"),
    "pos": (
        *("positive", "positives", "pos_doc", "pos_docs", "pos_passages", "chosen", "response"),
        *("positive_doc", "positive_docs", "positive_document", "positive_ctxs", "answer"),
    ),
    "neg": (
        *("negative", "negatives", "neg_doc", "neg_docs", "negs", "neg_passages", "negative_1"),
        *("hard_neg", "hard_negs", "hard_negatives", "hard_negative_ctxs", "negative_ctxs"),
        *("negative_doc", "negative_docs", "negative_document", "rejected", "rejected_response"),
    ),
}

#: Fields by which the format of a converter is recognised.
TEVATRON = ("positive_passages", "negative_passages")
LABELLED_LISTS = ("docs", "labels")
PASSAGE_NAMES = ("passage", "document", "doc", "context", "text", "sentence2")
LABEL_NAMES = ("label", "labels", "score", "relevance", "grade", "is_relevant")


def other_format(record: Mapping[str, object]) -> str:
    """Return what to do with a record that is not a group, as the end of a message, or ''."""
    names = {name.strip().lower(): name for name in record}
    fields = {
        wanted: next((names[name] for name in (wanted, *others) if name in names), None)
        for wanted, others in OTHER_NAMES.items()
    }
    source = converter(record, names, fields)
    if source:
        return f"; convert such records with `rerank-plugin convert --from {source}`"
    renamed = [
        f"{name!r} to {wanted!r}"
        for wanted, name in fields.items()
        if wanted not in record and name is not None
    ]
    if renamed:
        return f"; rename {', '.join(renamed)}"
    if record and not record.keys() & OTHER_NAMES.keys():
        return f"; the fields are {', '.join(map(ascii, list(record)[:8]))}"
    return ""


def converter(
    record: Mapping[str, object], names: Mapping[str, str], fields: Mapping[str, str | None]
) -> str | None:
    """Return the format of a converter that reads a record.

    Args:
        record: The record.
        names: Its fields by their names in lower case.
        fields: The fields that are likely to be those of a group.
    """
    passages = record.get("passages")
    if any(name in names for name in TEVATRON):
        return "tevatron"
    if isinstance(passages, dict | list) and "is_selected" in str(passages)[:10_000]:
        return "msmarco"
    if any(isinstance(record.get(str(fields[side])), str) for side in ("pos", "neg")):
        # Its fields are read by their order, not by their names.
        return "sentence-transformers"
    if fields["pos"] == "pos" and fields["neg"] is None:
        return "flagembedding"
    if all(name in names for name in LABELLED_LISTS):
        return "sentence-transformers"
    if any(name in names for name in PASSAGE_NAMES) and any(name in names for name in LABEL_NAMES):
        return "table"
    return None
