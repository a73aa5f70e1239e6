"""Negatives of queries: candidates without positives, their copies and near-duplicates."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from rerank_plugin.inputs import Pair, make_pair

from ..data.batched import batched
from ..data.corpus import Corpus
from ..data.groups import Group, grades_of, is_grade, query_hash
from ..text.duplicates import Duplicates, profile
from ..text.normalize import text_key
from .candidates import CandidateSearch
from .queries import Target
from .retrieval import Hits

#: Where candidates run out, at most so many passages are drawn at random until one is a negative.
DRAWS = 1000

#: A selection yields at most so many drawn negatives for each one that is wanted: a reranker may
#: drop all of them.
OVERDRAW = 4

#: Decimals of retrieval scores in groups.
SCORE_DIGITS = 6

SAMPLING_STRATEGIES = ("top", "random")


@dataclass(frozen=True)
class Window:
    """The ranks and scores of candidates that may become negatives.

    The names are those of sentence-transformers' `mine_hard_negatives`.
    """

    #: Ranks from 0, positives not counted: from `range_min` on and before `range_max`.
    range_min: int = 0
    range_max: int = 100
    #: A candidate must score less than the best positive by this share of its score.
    relative_margin: float | None = None
    sampling_strategy: str = "top"

    @property
    def is_unbiased(self) -> bool:
        """Return whether the best candidates are among the negatives, as a retriever finds them.

        Without them the retriever would look better than it is.
        """
        return self.range_min == 0 and self.relative_margin is None


@dataclass
class NegativeSelection:
    """The negatives of one query, in the order of preference.

    Each differs from the query, from every positive and from the negatives before it.
    """

    target: Target
    #: Texts of the positives, without copies, and their grades.
    positives: list[str]
    labels: list[float]
    #: The passages that were found, positives among them.
    hits: Hits
    #: Positions of the candidates, in the order in which they are tried.
    positions: list[int]
    #: Positions of passages that may not be drawn at random.
    excluded: set[int]
    corpus: Corpus
    window: Window
    #: Scores passages for the window's margin.
    search: CandidateSearch
    random: np.random.Generator
    negatives: int
    left_out: "Counter[str]"
    #: The negatives so far that were drawn at random.
    drawn: set[str] = field(default_factory=set)
    #: The position of every negative so far.
    found: dict[str, int] = field(default_factory=dict)
    _keys: set[str] = field(default_factory=set)

    def __iter__(self) -> Iterator[str]:
        positives = Duplicates(self.positives)
        for position in self.positions:
            (text,) = self.corpus.texts([position])
            if self._is_negative(text, positives):
                self.found[text] = position
                yield text
        draws = (draw for draw in self._draws() if self._is_negative(draw[0], positives))
        for text, position in islice(draws, OVERDRAW * self.negatives):
            self.found[text] = position
            self.drawn.add(text)
            yield text

    def _draws(self) -> Iterator[tuple[str, int]]:
        """Yield random passages: no candidates, positives or others outside of the margin."""
        seen = self.excluded.union(self.positions, self.target.positives, self.target.copies)
        count = min(len(self.corpus), DRAWS + len(seen))
        drawn = self.random.choice(len(self.corpus), count, replace=False).tolist()
        for positions in batched(
            (position for position in drawn if position not in seen), self.negatives
        ):
            if self.window.relative_margin is not None:
                margin = self.window.relative_margin
                (positions,) = within_margin([self.target], [positions], self.search, margin)
            yield from zip(self.corpus.texts(positions), positions, strict=True)

    def pair(self, text: str) -> Pair:
        """Return the pair of the query and a passage."""
        return make_pair(self.target.query, text, self.target.instruction)

    def take(self, count: int) -> Group:
        """Return a group with the first `count` negatives, or as many as there are."""
        return self.group(list(islice(self, count)))

    def group(
        self,
        negatives: list[str],
        pos_scores: list[float] | None = None,
        neg_scores: list[float] | None = None,
    ) -> Group:
        """Return the group of the query with some negatives, and perhaps a teacher's scores."""
        return Group(
            self.target.query,
            self.positives,
            negatives,
            pos_scores,
            neg_scores,
            self.target.id,
            self.target.instruction,
            pos_labels=grades_of(self.labels),
        )

    @property
    def has_grades(self) -> bool:
        """Return whether the labels of all positives are grades."""
        return all(map(is_grade, self.labels))

    def positions_of(self, group: Group) -> list[int]:
        """Return the positions of a group's passages, in the order of its documents."""
        positions = self.target.positives
        known = dict(zip(reversed(self.corpus.texts(positions)), reversed(positions), strict=True))
        return [known[text] for text in group.pos] + [self.found[text] for text in group.neg]

    def _is_negative(self, text: str, positives: Duplicates) -> bool:
        key = profile(text).key
        if key in self._keys:
            self.left_out["copies of another negative"] += 1
        elif key == text_key(self.target.query):
            self.left_out["copies of the query itself"] += 1
        elif positives.has(text):
            self.left_out["copies or near-duplicates of a positive"] += 1
        elif self.target.answers and self.target.answers.are_in(text):
            self.left_out["passages that contain the answer"] += 1
        else:
            self._keys.add(key)
            return True
        return False


def select(
    targets: Sequence[Target],
    search: CandidateSearch,
    corpus: Corpus,
    window: Window,
    *,
    negatives: int,
    seed: int,
    left_out: "Counter[str]",
) -> list[NegativeSelection]:
    """Search for some queries at once, and return a `NegativeSelection` of negatives for each."""
    found = found_passages(targets, search, window)
    ranked = list(map(negative_positions, found, targets))
    kept = [positions[window.range_min : window.range_max] for positions in ranked]
    if window.relative_margin is not None:
        kept = within_margin(targets, kept, search, window.relative_margin)
    selections = []
    for target, hits, positions, all_positions in zip(targets, found, kept, ranked, strict=True):
        random = np.random.default_rng(int(query_hash(target.query, seed)[:16], 16))
        close = set(all_positions[: window.range_max]).difference(positions)
        left_out["candidates outside of the window or the margin"] += len(close)
        if window.sampling_strategy == "random":
            positions = random.permutation(positions).tolist()
        texts = corpus.texts(target.positives)
        labels = [target.grades.get(position, 1) for position in target.positives]
        positives = without_copies(texts, labels)
        left_out["positives that are copies of another"] += len(target.positives) - len(positives)
        selections.append(
            NegativeSelection(
                target=target,
                positives=list(positives),
                labels=list(positives.values()),
                hits=hits,
                positions=positions,
                excluded=close,
                corpus=corpus,
                window=window,
                search=search,
                random=random,
                negatives=negatives,
                left_out=left_out,
            )
        )
    return selections


def with_retrieval_scores(
    groups: Sequence[Group], selections: Sequence[NegativeSelection]
) -> list[Group]:
    """Return groups with the retrieval scores of all passages."""
    scored = []
    for group, selection in zip(groups, selections, strict=True):
        row = selection.hits.scores_of(selection.positions_of(group)).tolist()
        scores, count = [round(score, SCORE_DIGITS) for score in row], len(group.pos)
        scored.append(
            replace(group, pos_retrieval_scores=scores[:count], neg_retrieval_scores=scores[count:])
        )
    return scored


def found_passages(
    targets: Sequence[Target], search: CandidateSearch, window: Window
) -> list[Hits]:
    """Return the passages that are found for each query, positives among them, best first."""
    count = window.range_max + max(len(target.positives) + len(target.copies) for target in targets)
    return search.search(targets, count)


def without_copies(texts: Sequence[str], labels: Sequence[float]) -> dict[str, float]:
    """Return texts without copies of an earlier one, each with the highest label of its copies."""
    first: dict[str, str] = {}
    highest: dict[str, float] = {}
    for text, label in zip(texts, labels, strict=True):
        kept = first.setdefault(profile(text).key, text)
        highest[kept] = max(label, highest.get(kept, label))
    return highest


def negative_positions(candidates: Hits, target: Target) -> list[int]:
    """Return the candidates that are neither positives nor the query itself, best first."""
    others = target.copies.union(target.positives)
    return [position for position in candidates.positions.tolist() if position not in others]


def within_margin(
    targets: Sequence[Target],
    ranked: Sequence[list[int]],
    search: CandidateSearch,
    margin: float,
) -> list[list[int]]:
    """Return the candidates that score below the best positive by a share of its score.

    This is TopK-PercPos of NV-Retriever (Moreira et al. 2024) for a margin of 0.05.
    """
    asked = [
        [*target.positives, *positions] for target, positions in zip(targets, ranked, strict=True)
    ]
    kept = []
    for target, positions, scores in zip(
        targets, ranked, search.score(targets, asked), strict=True
    ):
        best = scores[: len(target.positives)].max()
        # A run may lack the positives: then only passages that it lacks too are allowed.
        highest = best - margin * abs(best) if np.isfinite(best) else best
        allowed = scores[len(target.positives) :] <= highest
        kept.append(
            [
                position
                for position, is_allowed in zip(positions, allowed, strict=True)
                if is_allowed
            ]
        )
    return kept
