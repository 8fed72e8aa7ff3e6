"""Which languages the texts are in."""

import json
import subprocess
import sys

import pytest
from test_doctor import examine, found, numbered, splits

from raytune_llm.data.doctor.language import language
from raytune_llm.data.doctor.page import render
from raytune_llm.data.records import Chat, Message, Supervised

INSTRUCTION = "Classify the following text as positive or negative. Text:"
SENTENCES = {
    "en": ["The delivery was three days late and the box was damaged.", "Could you help me find the nearest station?"],
    "fr": [
        "La livraison est arrivée avec trois jours de retard et le carton était abîmé.",
        "Pouvez-vous m'aider à trouver la gare la plus proche ?",
        "Le film était vraiment décevant, je ne le recommande pas.",
    ],
    "de": [
        "Die Lieferung kam drei Tage zu spät und der Karton war beschädigt.",
        "Können Sie mir helfen, den nächsten Bahnhof zu finden?",
        "Der Film war leider sehr enttäuschend, ich kann ihn nicht empfehlen.",
    ],
    "es": [
        "El pedido llegó con tres días de retraso y la caja estaba dañada.",
        "¿Puede ayudarme a encontrar la estación más cercana?",
        "La película fue muy decepcionante, no la recomiendo.",
    ],
    "ru": ["Здравствуйте, я хотел бы забронировать столик на двоих сегодня вечером."],
    "ja": ["今晩、二人分のテーブルを予約したいのですが。"],
}
NONE = [
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))",
    "for (int i = 0; i < n; i++) { sum += a[i]; }\nreturn sum;",
    "SELECT id, name FROM users WHERE age > 30 ORDER BY name;",
    '{"id": 17, "tags": ["a", "b"], "ok": true}',
    "import numpy as np\nx = np.zeros((3, 4))\nprint(x.shape)",
    "git commit -m 'fix' && git push origin main",
    "12.5 13.1 14.9 15.2 16.8 22.1 19.7",
    "x^2 + 3x - 7 = 0",
    "2024-01-01 12:30:45, 2024-01-02 08:15:00",
    "https://example.com/a/b?x=1&y=2",
    "question number 12 of all",
    "",
    "\ud800 \x00",
]


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in SENTENCES.items() for text in texts])
def test_sentences_are_recognised(code, text):
    assert language(text) == code


@pytest.mark.parametrize("text", NONE)
def test_code_numbers_and_a_few_words_are_no_language(text):
    assert language(text) is None


def asked(*codes: str, start: int = 0) -> list[Supervised]:
    texts = (SENTENCES[code][i % len(SENTENCES[code])] for i, code in enumerate(codes))
    return [Supervised(f"{INSTRUCTION} {text} {i}", ("good", "bad")[i % 2]) for i, text in enumerate(texts, start)]


def test_a_language_that_train_lacks():
    diagnosis = examine(splits(asked(*["en"] * 30), asked(*["en"] * 30, *["de"] * 6, *["fr"] * 4, start=50)))
    assert {name: facts.languages for name, facts in diagnosis.splits.items()} == {
        "train": {"en": 1.0},
        "eval": {"en": 0.75, "de": 0.15, "fr": 0.1},
    }
    [new] = found(diagnosis, "language")
    assert new.text == (
        "eval has texts in languages that train lacks: de 15%, fr 10%; train: en 100% (ISO 639 codes; where a language "
        "can be told): add such records to train, or leave them out"
    )
    assert diagnosis.notes[1] == (
        "languages (ISO 639 codes; where they can be told): train en 100%; eval en 75%, de 15%, fr 10%"
    )
    assert "en 75 %, de 15 %, fr 10 %" in render(diagnosis, "a")
    assert json.loads(json.dumps(diagnosis.to_dict()))["splits"]["eval"]["languages"]["fr"] == 0.1


def test_a_few_texts_in_another_language_are_left_in_peace():
    train = asked(*["en"] * 49, "de")
    assert found(examine(splits(train, asked(*["en", "de"] * 20, start=60))), "language") == [], "train has it"
    assert found(examine(splits(asked(*["en"] * 30), asked(*["en"] * 28, *["de"] * 3, start=60))), "language") == []
    assert found(examine(splits(asked(*["en"] * 30), asked(*["de"] * 9, start=60))), "language") == [], "too few"


def test_a_language_that_is_told_is_not_reported_as_a_script_too():
    diagnosis = examine(splits(asked(*["en"] * 30), asked(*["ru"] * 30, start=60)))
    assert [one.kind for one in diagnosis.findings if one.kind in ("language", "script")] == ["language"]


def test_answers_count_and_conversations():
    def chats(code: str, start: int) -> list[Chat]:
        return [
            Chat((Message("user", f"{i} {SENTENCES['en'][1]} {i}"), Message("assistant", SENTENCES[code][0])))
            for i in range(start, start + 30)
        ]

    diagnosis = examine(splits(chats("en", 0), chats("fr", 50)))
    assert diagnosis.splits["eval"].languages == {"en": 0.5, "fr": 0.5}
    assert len(found(diagnosis, "language")) == 1


def test_nothing_is_concluded_of_texts_that_can_not_be_told():
    assert examine(splits(numbered(50))).splits["train"].languages == {}
    code = [Supervised(f"{NONE[i % 6]} # {i}", NONE[(i + 1) % 6]) for i in range(60)]
    assert examine(splits(code)).splits["train"].languages == {}


def test_the_model_is_loaded_only_where_there_is_a_text_to_tell():
    code = (
        "import sys, raytune_llm.data.doctor.examine as doctor\n"
        "from raytune_llm.data.files import Splits\n"
        "from raytune_llm.data.records import Supervised\n"
        "doctor.examine(Splits([Supervised(f'ask {i}', f'say {i}') for i in range(20)], [], [], {}, False))\n"
        "sys.exit('py3langid' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
