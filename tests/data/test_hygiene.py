import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwin.data.conversation import Conversation, Message, Preference
from xwin.data.hygiene import (
    Duplicate,
    Hit,
    Item,
    bands,
    content_key,
    exact_duplicates,
    fold,
    near_duplicates,
    opening_key,
    overlaps,
    questions_of,
    text_index,
    words,
)

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"
PASSAGE = " ".join(f"word{i}" for i in range(120))


def chat(question: str, answer: str | None = None, label: bool | None = None) -> Conversation:
    answers = () if answer is None else (Message("assistant", answer),)
    return Conversation("q", (Message("user", question), *answers), label)


def pair(question: str, chosen: str, rejected: str) -> Preference:
    return Preference("p", (Message("user", question),), Message("assistant", chosen), Message("assistant", rejected))


def test_words_are_letters_and_digits_in_one_case() -> None:
    assert words("Don't  pay\t$1,000!\nＡＢＣ ﬁne-tuned, naïve_user's 3.5") == (
        *("dont", "pay", "1000", "abc", "fine", "tuned", "naïve", "users", "3", "5"),
    )


def test_scripts_without_spaces_have_a_word_per_character() -> None:
    assert words("你好，世界 GPT4很好") == ("你", "好", "世", "界", "gpt4", "很", "好")


def test_vowel_signs_do_not_part_a_word_and_invisible_characters_do_not_count() -> None:
    assert words("हिन्दी भाषा") == ("हिन्दी", "भाषा")
    assert words("in\u200bvisi\u00adble") == ("invisible",)


def test_folding_keeps_signs_and_drops_what_surrounds_words() -> None:
    assert fold('  "What  is 7 - 3 ?" (quick!)') == "what is 7 - 3 (quick!)"
    assert len({fold(t) for t in ("7 - 3", "7 + 3", "7 3", "C++", "C#", "C", "x != y", "x = y", "3.5", "35")}) == 10
    assert fold("你好，世界！") == fold("你好 世界") == "你 好 世 界"
    assert fold(" ?! ") == "?!"


@given(st.text(max_size=60))
def test_folding_and_words_do_not_see_case_or_spacing(text: str) -> None:
    assert fold(fold(text)) == fold(text)
    spaced = f"  {text}\n"
    assert (fold(spaced), words(spaced)) == (fold(text), words(text))


def test_a_row_that_says_what_an_earlier_one_says_is_an_exact_duplicate_of_the_first() -> None:
    rows = [chat("Hi there", "Hello."), chat("Bye", "See you"), chat(" hi THERE!", "hello"), chat("Hi there", "Hello."), chat("Hi there", "Hey")]
    assert exact_duplicates(rows) == [Duplicate(2, 0, 1.0), Duplicate(3, 0, 1.0)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is (2 + 3) * 4?", "What is 2 + (3 * 4)?"),
        ("2 ** 3", "2 * 3"),
        ("What is 5!", "What is 5."),
        ("What is 5 !", "What is 5 ?"),
        ("(2 + 1)!", "(2 + 1)."),
        ("[3, 1], [2]", "[3], [1, 2]"),
        ("__init__", "init"),
        ("How long is 5'?", 'How long is 5"?'),
    ],
)
def test_rows_that_differ_in_brackets_or_signs_are_not_duplicates(one: str, other: str) -> None:
    assert exact_duplicates([chat(one, "yes"), chat(other, "yes")]) == []


def test_prompts_that_are_checked_by_different_answers_are_not_duplicates() -> None:
    rows = [replace(chat(PASSAGE), meta={name: value}) for name, value in (("answer", "4"), ("answer", "5"), ("constraint", {"words": 3}))]
    again = replace(rows[0], meta={"answer": "4", "source": "elsewhere"})
    assert exact_duplicates([*rows, again]) == near_duplicates([*rows, again], 0.8) == [Duplicate(3, 0, 1.0)]


def test_label_roles_and_order_of_answers_make_a_difference() -> None:
    rows: list[Item] = [chat("a", "b", True), chat("a", "b", False), chat("a", "b"), chat("a b"), pair("a", "b", "c"), pair("a", "c", "b")]
    rows += [replace(chat("a", "b"), meta={"tools": [{"name": name}]}) for name in ("add", "subtract")]
    assert len({content_key(row) for row in rows}) == len(rows)
    assert exact_duplicates(rows) == []


def test_rows_that_open_alike_share_their_opening_key() -> None:
    system = Conversation("s", (Message("system", "Be kind"), Message("user", "Hi there!"), Message("assistant", "Hello")))
    assert opening_key(chat("hi there")) == opening_key(system) == opening_key(pair("Hi  there.", "x", "y")) == "hi there"


def test_a_row_changed_by_one_word_is_a_near_duplicate() -> None:
    changed = PASSAGE.replace("word60", "other")
    found = near_duplicates([chat(PASSAGE, "yes"), chat("something else", "no"), chat(changed, "Yes!")], 0.8)
    # by hand: 116 shingles each; the changed word is in 5 of them, so 111 are shared of 121
    assert found == [Duplicate(2, 0, 111 / 121)]


def test_two_answers_to_one_prompt_and_two_questions_about_one_passage_are_not_duplicates() -> None:
    answers = [chat(PASSAGE, "The capital is Paris."), chat(PASSAGE, "I do not know that.")]
    labels = [chat(PASSAGE, PASSAGE, True), chat(PASSAGE, PASSAGE, False)]
    assert near_duplicates(answers, 0.8) == near_duplicates(labels, 0.8) == []
    assert near_duplicates([chat(PASSAGE), chat(PASSAGE, "yes")], 0.8) == []


def test_short_rows_are_near_duplicates_only_when_they_are_equal() -> None:
    assert near_duplicates([chat("What is 7 + 3?", "10"), chat("What is 7 - 3?", "10"), chat("what is 7 + 3", "10")], 0.8) == [Duplicate(2, 0, 1.0)]


def test_a_near_duplicate_of_a_dropped_row_is_compared_with_the_kept_one() -> None:
    second = PASSAGE.replace("word60", "other")
    third = second.replace("word20", "another").replace("word100", "third")
    found = near_duplicates([chat(PASSAGE), chat(second), chat(third)], 0.83)
    # by hand: the third shares 106 of 126 shingles (0.84) with the second, which is dropped, and 101 of 131 (0.77) with the first
    assert found == [Duplicate(1, 0, 111 / 121)]


def test_pairs_just_above_the_similarity_are_found_and_those_below_are_not() -> None:
    passages = [[f"p{number}w{i}" for i in range(100)] for number in range(150)]
    rows = [chat(" ".join(passage)) for passage in passages]
    for changes in ((20, 60), (20, 50, 80)):
        rows += [chat(" ".join("new" if i in changes else word for i, word in enumerate(passage))) for passage in passages]
    # by hand, of 96 shingles: two changed words leave 86 of 106 (0.81), three leave 81 of 111 (0.73)
    assert near_duplicates(rows, 0.8) == [Duplicate(150 + i, i, 86 / 106) for i in range(150)]


def test_near_duplicates_are_the_same_every_time_and_need_nothing_drawn() -> None:
    rows = [chat(" ".join(f"w{(i * j) % 97}" for j in range(60))) for i in range(60)]
    assert near_duplicates(rows, 0.5) == near_duplicates(list(rows), 0.5)


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not() -> None:
    index = text_index("exam", [f"Zero; {THIRTEEN.upper()}. And more words follow here, to be sure."])
    twelve = THIRTEEN.rsplit(" ", 1)[0]
    rows = [chat(f"Before {twelve} after"), chat("Before", f"it says -- {THIRTEEN} -- after"), chat(THIRTEEN.replace("seven", "7"))]
    assert overlaps(rows, index) == [Hit(1, 0, THIRTEEN)]


def test_a_text_of_eight_to_twelve_words_overlaps_as_a_whole_and_a_shorter_one_only_as_a_whole_message() -> None:
    index = text_index("exam", ["Who wrote the play about the prince of Denmark?", "Tell me a joke"])
    rows = [
        chat("Please say: who wrote the play about the prince of Denmark, and when?"),
        chat("Who wrote the play about the prince of"),
        chat("Tell me a joke about cats"),
        chat("tell me a joke!", "no"),
    ]
    assert [(hit.row, hit.text) for hit in overlaps(rows, index)] == [(0, 0), (3, 1)]


def test_a_run_does_not_cross_messages() -> None:
    half = THIRTEEN.split(" seven ")
    assert overlaps([chat(half[0] + " seven", half[1])], text_index("exam", [THIRTEEN])) == []


def test_every_text_that_a_row_repeats_is_found_once() -> None:
    index = text_index("exam", [THIRTEEN, "nothing like it", THIRTEEN + " fourteen"])
    found = overlaps([pair(THIRTEEN, "x", f"{THIRTEEN} fourteen")], index)
    assert found == [Hit(0, 0, THIRTEEN), Hit(0, 2, THIRTEEN)]
    assert index.texts == 3


def test_texts_without_a_word_are_never_found() -> None:
    index = text_index("exam", ["", "?!", "😀"])
    assert overlaps([chat("😀"), chat("?!")], index) == []
    assert index.texts == 3


def test_questions_are_what_the_person_says() -> None:
    turns = (Message("system", "s"), Message("user", "one"), Message("assistant", "a"), Message("user", "two"))
    assert questions_of(Conversation("q", turns)) == ("one", "two")
    assert questions_of(pair("ask", "x", "y")) == ("ask",)


@given(st.lists(st.text(string.ascii_letters + "'.,-!  ", min_size=1, max_size=12), min_size=20, max_size=40), st.integers(0, 7))
def test_a_planted_text_is_found_whatever_stands_around_it(parts: list[str], at: int) -> None:
    text = " ".join(parts)
    if len(words(text)) >= 8:
        row = chat(f"{THIRTEEN[: at * 5]} {text.upper()} and so on")
        assert [hit.text for hit in overlaps([row], text_index("exam", [text]))] == [0]


@pytest.mark.parametrize(("similarity", "expected"), [(1.0, (2, 64)), (0.8, (25, 5)), (0.01, (128, 1))])
def test_bands_miss_one_pair_in_a_thousand_at_most(similarity: float, expected: tuple[int, int]) -> None:
    # by hand for 0.8: (1 - 0.8^5)^25 = 0.00005, and (1 - 0.8^6)^21 = 0.0017 is too much
    assert bands(similarity) == expected


@pytest.mark.parametrize("similarity", [0.5, 0.8, 1.0])
def test_equal_rows_are_near_duplicates_at_any_similarity(similarity: float) -> None:
    assert near_duplicates([chat(PASSAGE, "a b"), chat(PASSAGE.upper(), "A  B.")], similarity) == [Duplicate(1, 0, 1.0)]
