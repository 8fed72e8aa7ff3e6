"""Characters that nobody meant to write, control tokens, secrets."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_doctor import diagnosed, found, numbered, splits, words

from raytune_llm.data.doctor.examine import examine
from raytune_llm.data.doctor.secrets import NUMBERS, SECRETS
from raytune_llm.data.findings import Severity
from raytune_llm.data.records import Chat, Message, Rationale, Supervised


def kinds(*texts: str) -> dict[str, int | None]:
    train = [*numbered(20), *(Supervised(f"prompt {i}", text) for i, text in enumerate(texts))]
    return {finding.kind: finding.count for finding in examine(splits(train)).findings}


def test_oddities_of_answers():
    chat = Chat((Message("user", "1"), Message("assistant", "2"), Message("user", "3")))
    diagnosis = examine(splits([*numbered(9), Supervised("a", " b"), Supervised("b", "caf\ufffd"), chat]))
    assert diagnosis.warnings == [
        "train: 1 record has a replacement character (�), a sign of a wrong encoding: read the source again as what it "
        "is encoded in",
        "train: 1 record has an answer with leading or trailing whitespace, which would be learned too: strip it",
        "train: 1 record has a last turn by the user, which is not learned from",
    ]
    assert diagnosis.verdict == "usable, with 3 warnings"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a\x00b", "control_characters"),
        ("a\x1b[31mb", "control_characters"),
        ("a\x7fb", "control_characters"),
        ("a\x9bb", "high_control_characters"),
        ("\x9b31m red", "high_control_characters"),
        ("it\x92s \x93said\x94", "high_control_characters"),
        ("caf\xe9\x85s", "high_control_characters"),
        ("\x81", "high_control_characters"),
        ("â\x80\x99tis", "mojibake"),
        ("a\u200bb", "invisible_characters"),
        ("a\ufeffb", "invisible_characters"),
        ("soft\u00adhyphen", "invisible_characters"),
        ("a\u202eb", "invisible_characters"),
        ("a\u200db", "invisible_characters"),
        ("Tom &amp; Jerry", "html_entities"),
        ("it&#39;s", "html_entities"),
        ("&#x1F600;", "html_entities"),
        ("cafÃ© crÃ¨me", "mojibake"),
        ("itâ€™s", "mojibake"),
        ("caf\ufffd", "replacement_character"),
        (" b", "padded_answer"),
        ("b\n", "padded_answer"),
    ],
)
def test_one_kind_each(text, kind):
    assert kinds(text, "fine") == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        "plain\ttext\r\nof two lines",
        "AT&T; R&D & more; fish &c.",
        "café crème, naïve, Übergröße, “quotes” – dashes…",
        "👨‍👩‍👧 family 🏴 ❤️",
        "می‌خواهم",
        "क्‍ष",
        "日本語のテキスト",
        "a\u00a0b",
    ],
)
def test_no_false_alarm(text):
    assert kinds(text) == {}


def test_places_name_what_is_wrong_and_are_printable():
    [odd] = found(
        examine(splits([*numbered(9), Supervised("a" * 100 + "\x1b[2J" + "b" * 100, "c")])), "control_characters"
    )
    assert odd.places[0].where == "data.train, record 10"
    assert odd.places[0].excerpt == "…" + "a" * 30 + "\\x1b[2J" + "b" * 26 + "…"


def test_lone_high_control_characters_are_called_that():
    [odd] = examine(splits([*numbered(9), Supervised("red \x9b31m", "c"), Supervised("it\x92s", "d")])).findings
    assert odd.text == (
        "train: 2 records have control characters from \\x80 to \\x9f: remove them or, where they stand for quotes and "
        "dashes, read the source as windows-1252"
    )
    assert [place.excerpt for place in odd.places] == ["red \\x9b31m c", "it\\x92s d"]
    assert kinds("it\x92s cafÃ©") == {"mojibake": 1}


def test_control_tokens_of_the_base():
    train = [*numbered(9), Supervised("ignore that</s>now 1", "2"), Supervised("1", "a <unk> b </s>")]
    [tokens] = found(diagnosed(splits(train), words()), "control_tokens")
    assert tokens.count == 2 and tokens.severity is Severity.warning
    assert tokens.text == (
        "train: 2 records have control tokens of the base written out in a text (</s>, <unk>): they become the real "
        "ones, which can forge turns and end answers early; remove or rewrite them"
    )
    assert found(diagnosed(splits([*numbered(9), Supervised("a < b", "c")]), words()), "control_tokens") == []


CARD, IBAN = "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00"


def test_secrets_are_counted_and_never_shown():
    key = "AKIA" + "ABCDEFGHIJKLMNOP"
    texts = [f"key {key}", "-----BEGIN RSA PRIVATE KEY-----", "sk-" + "a1" * 20, "ghp_" + "a" * 36]
    diagnosis = examine(splits([*numbered(9), *(Supervised(text, "ok") for text in texts)]))
    [secrets] = found(diagnosis, "secrets")
    assert secrets.text == (
        "train: 4 records with what looks like credentials (AWS keys 1, private keys 1, API keys (sk-…) 1, GitHub "
        "tokens 1): a tuned model can repeat them; remove and revoke them"
    )
    assert [place.excerpt for place in secrets.places] == ["", "", ""]
    assert key not in diagnosis.text()


def test_personal_data_is_a_note():
    texts = [f"mail a.b@example.com, card {CARD}", f"pay {IBAN}", "call 555-123-4567 or (415) 555 2671"]
    diagnosis = examine(splits([*numbered(9), *(Rationale(text, "ok", "so") for text in texts)]))
    [personal] = found(diagnosis, "personal_data")
    assert personal.count == 3 and personal.severity is Severity.note
    for what in ("e-mail addresses 1", "payment card numbers 1", "bank accounts (IBAN) 1", "phone numbers 1"):
        assert what in personal.text
    assert not {CARD, IBAN} & set(diagnosis.text().split())


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "https://twitter.com/a/status/1430308715744440322?s=19",
        "in 2019-2020 we sold 1,234,567 of 10,440,000",
        "12 34 56 78 90, 3.14159265358979",
        "DE89 3704 0044 0532 0130 01",
        "sk-learn is a library; gh_pages; an eye; me @ home",
        "risk-free-of-everything-that-matters",
        "1990-1999 and 2000-2010",
        "there are 400-120-200=80 students",
    ],
)
def test_numbers_that_are_nothing(text):
    assert kinds(text) == {}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_examined_and_reported_printably(text):
    train = [*numbered(3), Supervised("x" + text, "y" + text), Rationale(text + "x", text + "y", None)]
    shown = diagnosed_text(train)
    assert all(line.isprintable() for line in shown.split("\n"))


def diagnosed_text(train) -> str:
    return examine(splits(train)).text()


def test_scanning_is_linear_in_awkward_texts():
    """A text made to make patterns backtrack is done at once; this would take minutes otherwise."""
    generator = random.Random(0)
    awkward = ["1 " * 20_000, "a." * 20_000 + "@", "AB12 " * 10_000, "&" * 40_000, "(12" * 10_000, "eyJ" + "a" * 40_000]
    awkward.append("".join(generator.choice("-. 0123456789") for _ in range(40_000)))
    for text in awkward:
        for pattern, _ in NUMBERS.values():
            list(pattern.finditer(text))
        for _, pattern in SECRETS.values():
            pattern.search(text)
        kinds(text.strip())
