"""A base and its adapters measured together are what each of them is by itself."""

import dataclasses
import functools
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from raytune_llm.data import demo
from raytune_llm.data.examples import IGNORED, TokenSequence
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.evaluation import systems as module
from raytune_llm.evaluation.systems import Task, measure_systems
from raytune_llm.evaluation.terms import Term
from raytune_llm.methods.sft import SFT
from raytune_llm.models.base import Base, DType


@pytest.fixture(scope="module")
def base():
    return Base(
        name_or_path=str(demo.path("base")),
        revision=None,
        dtype=DType.float32,
        learning_rate=1e-3,
        attention="sdpa",
        chat_template=None,
        eos_token=None,
        from_pretrained={},
    )


@pytest.fixture(scope="module")
def task(base):
    tokens = Tokens(base.tokenizer(), max_tokens=128, is_encoder_decoder=False)
    stories = ["Anna lost her keys.", "Ben won a prize and he danced with all of his friends.", "Is joy good?", "Hm."]
    prompts = [tokens.prompt(story, max_new_tokens=12) for story in stories]
    answers = [tokens.tokenizer.encode(word, add_special_tokens=False) for word in ("no", "yes indeed", "good", "oh")]
    examples = [
        {"completion": TokenSequence(prompt + answer, [IGNORED] * len(prompt) + answer)}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    terms = SFT(metric="eval/loss", init_adapter=None).terms
    return Task(examples, terms, prompts, tokens.tokenizer, tokens.stop_ids(), max_new_tokens=12, batch_size=3)


def adapter(base, folder, seed, **options):
    torch.manual_seed(seed)
    adapted = get_peft_model(base.load(), LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(folder))
    return str(folder)


def alone(base, systems, task, monkeypatch):
    """Each system by transformers and PEFT."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "_stackable", lambda base, systems: None)
        return measure_systems(base, systems, task, use_gpu=False)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, measured in expected.items():
        assert found[name].completions == measured.completions
        metrics = measured.scores.metrics()
        assert found[name].scores.metrics() == pytest.approx(metrics, rel=1e-4) and math.isfinite(metrics["eval/loss"])


def test_adapters_of_any_rank_and_modules_are_measured_together(base, task, tmp_path, monkeypatch):
    systems = {
        "base": None,
        "champion": adapter(base, tmp_path / "one", 1, r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"]),
        "tuned": adapter(base, tmp_path / "two", 2, r=8, target_modules="all-linear", use_rslora=True),
    }
    expected = alone(base, systems, task, monkeypatch)
    assert len({tuple(measured.completions) for measured in expected.values()}) == 3
    loads = []
    whole = module.load_model
    monkeypatch.setattr(module, "load_model", lambda *args, **more: loads.append(args[1]) or whole(*args, **more))
    assert_same(measure_systems(base, systems, task, use_gpu=False), expected)
    assert loads == [None]
    assert_same(measure_systems(base, {"base": None}, task, use_gpu=False), {"base": expected["base"]})


def test_a_prompt_that_begins_its_example_is_read_once(base, task, monkeypatch):
    shapes = []
    whole = LlamaForCausalLM.forward

    @functools.wraps(whole)
    def forward(self, input_ids, **more):
        shapes.append(input_ids.shape)
        return whole(self, input_ids=input_ids, **more)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)

    def rows_read(task):
        shapes.clear()
        found = measure_systems(base, {"base": None}, task, use_gpu=False)
        return found["base"], sum(rows for rows, tokens in shapes if tokens > 1)

    once, count = rows_read(task)
    assert count == len(task.examples)
    others = [task.examples[i] for i in (1, 0, 2, 3)]
    apart, count = rows_read(dataclasses.replace(task, examples=others))
    assert count == len(task.examples) + 2
    assert apart.completions == once.completions
    assert apart.scores.metrics() == pytest.approx(once.scores.metrics(), rel=1e-5)


@pytest.mark.parametrize("begins", [True, False])
def test_equal_prompts_are_answered_once_and_all_examples_scored(base, task, tmp_path, monkeypatch, begins):
    order = [0, 1, 0, 2, 0]
    ends = [[5], [6, 7], [8], [9], [10, 11, 12]]
    prompts = [task.prompts[i] for i in order]
    rows = [(prompt if begins else [3], end) for prompt, end in zip(prompts, ends, strict=True)]
    examples = [{"completion": TokenSequence(row + end, [IGNORED] * len(row) + end)} for row, end in rows]
    repeated = dataclasses.replace(task, prompts=prompts, examples=examples, batch_size=2)
    systems = {"base": None, "tuned": adapter(base, tmp_path / "one", 1, r=4, target_modules="all-linear")}
    expected = alone(base, systems, repeated, monkeypatch)
    asked = []
    whole = module.greedy_answers
    monkeypatch.setattr(module, "greedy_answers", lambda *args, **more: asked.extend(args[1]) or whole(*args, **more))
    assert_same(measure_systems(base, systems, repeated, use_gpu=False), expected)
    assert asked == [task.prompts[i] for i in range(3)] * 2


def test_examples_of_several_sequences_are_measured_together(base, task, tmp_path, monkeypatch):
    examples = [{"other": TokenSequence([5, 6, 7], [5, 6, 7]), **example} for example in task.examples]

    def terms(found):
        other = found["other"].logprobs.sum(-1)
        return {**task.terms(found), "other": Term(other, torch.ones_like(other), coefficient=0.0)}

    systems = {"base": None, "tuned": adapter(base, tmp_path / "one", 1, r=4, target_modules="all-linear")}
    several = dataclasses.replace(task, examples=examples, terms=terms, batch_size=1)
    expected = alone(base, systems, several, monkeypatch)
    assert {"eval/loss", "eval/other"} <= expected["base"].scores.metrics().keys()
    assert_same(measure_systems(base, systems, several, use_gpu=False), expected)


@pytest.mark.parametrize("kind", ["dora", "model"])
def test_what_can_not_lie_on_one_base_is_measured_by_itself(base, task, tmp_path, monkeypatch, kind):
    folder = tmp_path / "tuned"
    if kind == "model":
        base.load().save_pretrained(folder)
    else:
        adapter(base, folder, 1, r=4, target_modules=["q_proj"], use_dora=True)
    systems = {"base": None, "tuned": str(folder)}
    monkeypatch.setattr(module, "_together", None)
    found = measure_systems(base, systems, task, use_gpu=False)
    assert (found["base"].completions == found["tuned"].completions) == (kind == "model")


def test_an_adapter_of_another_base_and_prompts_without_room_are_refused(base, task, tmp_path):
    folder = adapter(base, tmp_path / "one", 1, r=2, target_modules=["q_proj"])
    (tmp_path / "one" / "adapter_config.json").write_text(
        (tmp_path / "one" / "adapter_config.json").read_text().replace('"r": 2', '"r": 5')
    )
    with pytest.raises(InputError, match="tuned doesn't fit its base"):
        measure_systems(base, {"base": None, "tuned": folder}, task, use_gpu=False)
    with pytest.raises(InputError, match=r"evaluation.max_new_tokens=100000"):
        measure_systems(base, {"base": None}, dataclasses.replace(task, max_new_tokens=100_000), use_gpu=False)
