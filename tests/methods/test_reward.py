"""The reward method's terms in closed form, what it encodes, and what it refuses."""

import math

import pytest
import torch
from worlds import tokenizer

from raytune_llm.data.examples import IGNORED
from raytune_llm.data.records import Message, Preference
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.methods.reward import Reward
from raytune_llm.models.forward import score_outputs

PAIR = Preference("what does the cat say", "one", "two three")


def terms_of(chosen, rejected, centering=0.0):
    outputs = {"chosen": score_outputs(torch.tensor(chosen)), "rejected": score_outputs(torch.tensor(rejected))}
    return Reward(metric="eval/loss", centering=centering).terms(outputs)


def test_bradley_terry_in_closed_form():
    terms = terms_of([1.0, 0.0, 2.0], [0.0, 0.0, 5.0])
    expected = [math.log(1 + math.exp(-margin)) for margin in (1.0, 0.0, -3.0)]
    assert terms["preference_loss"].sum.tolist() == pytest.approx(expected)
    assert terms["accuracy"].sum.tolist() == [1.0, 0.5, 0.0]
    assert terms["margin"].sum.tolist() == [1.0, 0.0, -3.0]
    assert "centering_loss" not in terms


def test_centering_adds_the_squared_sum_of_scores():
    term = terms_of([1.0, 2.0], [3.0, -2.0], centering=0.01)["centering_loss"]
    assert term.sum.tolist() == [16.0, 0.0] and term.coefficient == 0.01


def test_both_answers_are_read_to_their_end():
    words = tokenizer()
    for is_encoder_decoder in (False, True):
        tokens = Tokens(words, max_tokens=64, is_encoder_decoder=is_encoder_decoder)
        example = Reward(metric="eval/loss", centering=0.0).encode(PAIR, tokens)
        assert list(example) == ["chosen", "rejected"]
        for name, answer in (("chosen", PAIR.chosen), ("rejected", PAIR.rejected)):
            ids = example[name].input_ids
            assert ids[-1] == words.eos_token_id and ids.count(words.eos_token_id) == 1
            assert answer in words.decode(ids) and PAIR.prompt in words.decode(ids)


def test_a_cut_answer_still_ends_with_eos_on_encoder_decoder_bases():
    words = tokenizer()
    tokens = Tokens(words, max_tokens=4, is_encoder_decoder=True)
    example = Reward(metric="eval/loss", centering=0.0).encode(PAIR, tokens)
    assert [sequence.input_ids[-1] for sequence in example.values()] == [words.eos_token_id] * 2


def test_a_conversation_is_judged_in_its_template():
    words = tokenizer()
    from raytune_llm.data.tokenizing.template import supply_template

    supply_template(words)
    tokens = Tokens(words, max_tokens=64, is_encoder_decoder=False)
    prompt = (Message("user", "what does the cat say"),)
    pair = Preference(prompt, (Message("assistant", "one"),), (Message("assistant", "two"),))
    example = Reward(metric="eval/loss", centering=0.0).encode(pair, tokens)
    assert all(any(label != IGNORED for label in sequence.labels) for sequence in example.values())


def test_a_negative_centering_is_refused():
    with pytest.raises(InputError, match=r"method\.centering=-1\.0 is not allowed; allowed: ≥ 0"):
        load("train", ["method=reward", "method.centering=-1.0", "model=demo", "data=demo_preference"])


def test_one_candidate_is_refused_with_its_line(tmp_path):
    from raytune_llm.jobs.prepare import prepare

    file = tmp_path / "train.jsonl"
    file.write_text('{"input_text": "a", "candidate_0": "b", "choice": 0}\n' * 3)
    with pytest.raises(InputError, match=r"train\.jsonl.*1.*candidate_1.*the record lacks an answer"):
        prepare(load("check", ["method=reward", "model=demo", f"data.train={file}"]))
