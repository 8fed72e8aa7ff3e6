"""What the doctor finds in public data that nobody prepared for it."""

import json

import pytest
from test_doctor import encode, found

from raytune_llm.data.dialects.parsing import parse
from raytune_llm.data.doctor.diagnosis import Diagnosis
from raytune_llm.data.doctor.examine import examine
from raytune_llm.data.encoding.encode import encode_splits
from raytune_llm.data.files import Splits
from raytune_llm.data.records import Preference, Rationale, Supervised
from raytune_llm.data.tokenizing.template import supply_template
from raytune_llm.data.tokenizing.tokens import Tokens

pytestmark = pytest.mark.real


def read(folder, kind: type) -> Splits:
    train, evaluation = (
        [parse(json.loads(line), (kind,)) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "eval")
    )
    return Splits(train, evaluation, [], {}, False)


def test_a_context_that_is_too_short_for_xquad(public_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(public_data / "models/stories260K")
    supply_template(tokenizer)
    tokens = Tokens(tokenizer, max_tokens=512, is_encoder_decoder=False)
    data = read(public_data / "data/xquad_en", Supervised)
    diagnosis = examine(data, encode_splits(data, tokens, encode), tokens, context_tokens=512)
    beginning, _ = found(diagnosis, "prompt_beginning_lost")
    answers, _ = found(diagnosis, "answer_out_of_context")
    assert beginning.text.startswith(
        "train: 481 of 856 lose the beginning of their prompt, the instruction ('Answer the question with a span of "
        "the context. Context:'): the longest has "
    )
    assert "data.max_tokens" not in beginning.text, "the base can't take more"
    assert answers.count == 132


def test_problems_that_nearly_repeat_one_of_train(public_data):
    [near] = found(examine(read(public_data / "data/svamp_dss", Rationale)), "near_leakage")
    assert near.text.startswith("26 of 128 eval prompts share 80% or more of the words with a prompt of train")


def test_entities_and_skew(public_data):
    diagnosis = examine(read(public_data / "data/isarcasm_cls", Supervised))
    assert [one.count for one in found(diagnosis, "html_entities")] == [82, 8]
    assert diagnosis.splits["train"].labels == {"not sarcastic": 2389, "sarcastic": 810}
    assert len(found(diagnosis, "label_skew")) == 2


@pytest.mark.parametrize(("name", "kind"), [("gsm8k_correctness_pref", Preference), ("xquad_en", Supervised)])
def test_sound_data_are_left_in_peace(name, kind, public_data):
    diagnosis: Diagnosis = examine(read(public_data / "data" / name, kind))
    assert diagnosis.findings == [] and diagnosis.verdict == "sound"
