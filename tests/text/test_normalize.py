import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_plugin.finetune.text.duplicates import (
    Duplicates,
    SimilarTexts,
    jaccard,
    overlap,
    shingles,
)
from rerank_plugin.finetune.text.normalize import text_key, words

from ..factories import sample_texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't PANIC, it's 2_000!", ["don", "t", "panic", "it", "s", "2", "000"]),
        ("Ｆｕｌｌ width ① Straße", ["full", "width", "1", "strasse"]),
        ("今天天气", ["今天", "天天", "天气"]),
        ("iPhone好用吗 京", ["iphone", "好用", "用吗", "京"]),
        ("ありがとう", ["あり", "りが", "がと", "とう"]),
        ("서울", ["서울"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("… — !", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
def test_words_do_not_depend_on_case_width_and_spacing(text: str) -> None:
    expected = words(text)
    assert all(expected) and all(not word.isspace() for word in expected)
    assert words(f"  {text}\n") == expected
    assert text_key(f"\t{text} ") == text_key(text)
    assert text_key(text.replace(" ", " \n")) == text_key(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("他在北京工作。", "他在，\n北 京工作！", True),
        ("iPhone好用吗", "iPhone 好 用、吗？", True),
        ("กรุงเทพ", "กรุง เทพ", True),
        ("THE CAT, SAT!", "the cat sat", True),
        ("soft\u00adware\u200b é", "software é", True),
        ("the cat", "thecat", False),
        ("C", "C++", False),
        ("5 %", "５％ –", True),
        ("-5", "5", False),
        ("\u22125", "- -5", True),
        ("6*3", "6/3", False),
        ("6 * 3", "6*3", True),
        ("*six* and **three**", "six and three", True),
        ("either/or", "either, or", False),
        ("either/or", "either /\n or", True),
        ("either/or", "either/ or", True),
        ("输入/输出", "输入 /  输出", True),
        ("输入/输出", "输入输出", False),
        ("3 - 2", "3  -\n2", True),
        ("10-20", "10-\n20", True),
        ("12:30", "12 : 30", True),
        ("I ❤️ you", "i ❤ you", True),
        ("1.5", "1/5", False),
        ("5-3", "5 – 3", True),
        ("5-3", "5/3", False),
        ("x != y", "x = y", False),
        ("10⁵", "105", False),
        ("H₂O, m²", "h2o m2", True),
        ("✓ done", "✗ done", False),
        ("■ done", "done", True),
        ("你好😀", "你好", False),
        ("…", "!", False),
        ("＿—", "", False),
    ],
)
def test_texts_that_are_the_same_but_for_case_and_punctuation(
    one: str, other: str, same: bool
) -> None:
    assert (text_key(one) == text_key(other)) is same


def test_near_copies_in_scripts_without_spaces() -> None:
    text = "香港是中华人民共和国的一个特别行政区位于南中国海沿岸"
    assert Duplicates([text]).has("，".join(text[i : i + 5] for i in range(0, len(text), 5)) + "等")
    assert not Duplicates([text]).has("上海是一座城市，位于长江口。")


def test_copies_and_windows_are_duplicates_and_other_texts_are_not() -> None:
    first, *others = sample_texts()[:30]
    known = Duplicates([first])
    assert known.has(first)
    assert known.has(f"  {first.upper()} !")
    assert known.has(f"{first} And something else was written behind it in this window.")
    assert known.has(first[: len(first) // 2])
    assert not any(known.has(text) for text in others)
    assert not Duplicates(["C is a language by Ritchie."]).has("C# is a language.")


@given(st.lists(st.frozensets(st.integers(0, 12), max_size=8), max_size=8))
def test_prefix_filtering_finds_all_near_duplicates(texts: list[frozenset[int]]) -> None:
    similar = SimilarTexts(list(texts), least=0.6)
    for members in texts:
        expected = [i for i, other in enumerate(texts) if jaccard(members, other) >= 0.6]
        assert similar.find(members) == (expected[0] if expected else None)


@given(st.text(), st.text())
def test_overlap_is_symmetric_and_whole_for_equal_texts(one: str, other: str) -> None:
    first, second = shingles(words(one)), shingles(words(other))
    assert overlap(first, second) == overlap(second, first)
    assert 0 <= overlap(first, second) <= 1
    assert overlap(first, first) == (1 if first else 0)
