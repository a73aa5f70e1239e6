"""A request in the terms of the core, whatever format it came in, and its ranking."""

from dataclasses import dataclass

from rerank_plugin.errors import InputError
from rerank_plugin.inputs import checked_query, instruction_text, is_blank, unicode_text
from rerank_plugin.server.refusals import Reason, RefusedError
from rerank_plugin.server.settings import ServerSettings


@dataclass(frozen=True, kw_only=True)
class RankingRequest:
    """A query and documents to rank."""

    query: str
    texts: list[str]
    #: The field that has the documents, for errors.
    field: str
    #: The name of the model or of an adapter; None for the default.
    model: str | None = None
    top_n: int | None = None
    score_threshold: float | str | None = None
    instruction: str | None = None
    #: The number of tokens that each document is cut to.
    max_tokens: int | None = None
    #: Whether the end of what is too long is cut off; else it is refused.
    truncate: bool = True
    #: Whether scores are logits.
    raw_scores: bool = False

    @property
    def characters(self) -> int:
        """Return the number of characters of the query and the documents."""
        return len(self.query) + sum(map(len, self.texts))

    def check(self, settings: ServerSettings) -> None:
        """Check the texts and their limits.

        Raises:
            RefusedError: none or too many, or one is blank, too long or not valid Unicode.
        """
        if not self.texts:
            raise RefusedError(Reason.INVALID, f"{self.field}: the list must not be empty")
        if len(self.texts) > settings.max_documents:
            raise RefusedError(
                Reason.TOO_LARGE,
                f"{self.field}: {len(self.texts)} are too many, the limit is "
                f"{settings.max_documents}",
            )
        texts = {f"{self.field}[{index}]": text for index, text in enumerate(self.texts)}
        self._check_lengths({"query": self.query, **texts}, settings.max_characters)
        try:
            checked_query(self.query)
            instruction_text(self.instruction)
            for where, text in texts.items():
                if is_blank(text):
                    raise InputError(f"{where}: expected a text that is not blank")
                unicode_text(text, where)
        except InputError as error:
            raise RefusedError(Reason.INVALID, str(error)) from None

    def _check_lengths(self, texts: dict[str, str], limit: int) -> None:
        for where, text in {**texts, "instruction": self.instruction or ""}.items():
            if len(text) > limit:
                raise RefusedError(
                    Reason.TOO_LARGE,
                    f"{where}: {len(text)} characters are too many, the limit is {limit}",
                )


@dataclass(frozen=True)
class ScoredDocument:
    """A document of a ranking: its index in the request, its score and its text."""

    index: int
    score: float
    text: str


@dataclass(frozen=True)
class RankingResponse:
    """The documents that are returned, the best first."""

    model: str
    documents: list[ScoredDocument]
    #: The number of tokens that the model has read.
    tokens: int
