"""Moving from OpenAI's fine-tuning: what exported files are, the command for each, and the old model's answers as the
bar."""

import json
import random
import shlex
from pathlib import Path

import pytest

from raytune_llm.data.dialects.parsing import Reader
from raytune_llm.data.records import Message, Prompt, RecordError
from raytune_llm.errors import InputError
from raytune_llm.jobs import commands, import_openai, old_answers
from raytune_llm.jobs.config import load
from raytune_llm.jobs.old_answers import OldAnswer, answers_of, compared, old_answer, read_answers, verdict_of
from raytune_llm.jobs.schema import SweepJob
from raytune_llm.methods.base import Method
from raytune_llm.stores.choices import name_of

COLOURS = ("red", "green", "blue", "black", "white")


def turns(question, answer, **more):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]


def wrong_and_right(question, answer):
    start = [{"role": "user", "content": question}, {"role": "assistant", "content": "hm", "weight": 0}]
    return {"messages": [*start, *turns("again", answer)]}


def preference(question, i):
    sides = {
        f"{name}_output": [{"role": "assistant", "content": f"{word} {i}"}]
        for name, word in (("preferred", "yes"), ("non_preferred", "no"))
    }
    return {"input": {"messages": [{"role": "user", "content": question}]}, **sides}


@pytest.fixture
def exported(tmp_path):
    """A folder as people keep them: chats, preferences, prompts with completions, and one that is broken."""
    folder = tmp_path / "exported, of 2024"
    folder.mkdir()
    questions = [f"what is {COLOURS[i % 5]} number {i}?" for i in range(40)]
    files = {
        "chat.jsonl": [wrong_and_right(question, f"it is {i}") for i, question in enumerate(questions)],
        "pairs.jsonl": [preference(question, i) for i, question in enumerate(questions)],
        "old (1).jsonl": [{"prompt": q + "\n\n###\n\n", "completion": f" {i} END"} for i, q in enumerate(questions)],
        "broken.jsonl": [{"messages": [{"role": "user", "content": "hi"}]}] * 12,
    }
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def job_of(folder, *overrides):
    return load("import_openai", ["model=demo", f"home={folder}/home", "run=r", *overrides])


def test_each_file_is_recognised_and_has_its_command(exported, tmp_path, capsys):
    assert commands.import_openai(job_of(tmp_path, f"data.train={exported}")) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines()[2:6]]
    found = {row.split(".jsonl")[0]: row.split(".jsonl")[1].split() for row in rows}
    assert {name: cells[:2] for name, cells in found.items()} == {
        "broken": ["sft", "0"],
        "chat": ["sft", "40"],
        "old (1)": ["sft", "40"],
        "pairs": ["dpo", "40"],
    }
    assert "broken.jsonl:1: messages" in printed and int(found["chat"][2]) > 40
    words = [shlex.split(line)[2:] for line in printed.splitlines() if line.startswith("next  ")]
    assert len(words) == 3 and all(words[0] == "sweep" or words[1] for words in words)
    for line, method in zip(words, ("sft", "sft", "dpo"), strict=True):
        job = load("sweep", line[1:] if line[0] == "sweep" else line)
        assert name_of(job.method, Method) == method and job.home == f"{tmp_path}/home"
        assert Path(job.data.train).is_file() and job.name in ("chat", "old-1", "pairs")
        assert job.model == load("check", ["model=demo", "data.train=x"]).model


def test_the_command_has_whatever_decides_how_records_are_read(exported, tmp_path):
    file = exported / "chat.jsonl"
    own = [f"data.train='{file}'", "data.max_tokens=60", "data.ignore=[weight]", "model.dtype=bfloat16", "name=wit"]
    job = job_of(tmp_path, *own)
    found = import_openai.inspect(job)
    words = shlex.split(import_openai.command(job, found[0], alone=True))
    again = load("sweep", words[words.index("sweep") + 1 :] if "sweep" in words else words[2:])
    assert (again.data, again.model, again.name) == (job.data, job.model, "wit")


def test_start_is_the_sweep_of_one_file(exported, tmp_path):
    job = job_of(tmp_path, f"data.train='{exported / 'pairs.jsonl'}'", "start=true", "sweep.space.tuning.steps=[7]")
    sweep = import_openai.sweep_of(job, import_openai.inspect(job))
    assert type(sweep) is SweepJob and name_of(sweep.method, Method) == "dpo"
    assert sweep.data.train == str(exported / "pairs.jsonl") and sweep.sweep.axes()["tuning.steps"].choices == (7,)
    for wrong in (exported, exported / "broken.jsonl"):
        job = job_of(tmp_path, f"data.train='{wrong}'", "start=true")
        with pytest.raises(InputError, match="start=true sweeps on one file"):
            commands.import_openai(job)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "data.train=null and answers=null"),
        (["answers=a.jsonl"], "needs one version"),
        (["answers=a.jsonl", "adapter=wit", "start=true"], "needs one version"),
        (["data.train=a.jsonl", "adapter=wit"], "give their file"),
        (["data.train=nowhere/*.jsonl"], "no file matches"),
    ],
)
def test_options_that_do_not_go_together(overrides, message, tmp_path):
    with pytest.raises(InputError, match=message):
        commands.import_openai(job_of(tmp_path, *overrides))


ASKED = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
TURNS = (Message("system", "be brief"), Message("user", "why?"))
SAMPLE = {"choices": [{"message": {"role": "assistant", "content": "so"}}]}
FORMS = [
    ({"messages": ASKED, "answer": "so", "reference": "thus"}, OldAnswer(TURNS, "so", "thus")),
    ({"messages": [*ASKED, {"role": "assistant", "content": "so"}]}, OldAnswer(TURNS, "so", None)),
    ({"prompt": "why?", "completion": "so", "ideal": "thus"}, OldAnswer("why?", "so", "thus")),
    ({"item": {"input": "why?", "ground_truth": "no"}, "sample": {"output_text": "so"}}, OldAnswer("why?", "so", "no")),
    ({"item": {"messages": ASKED}, "sample": SAMPLE}, OldAnswer(TURNS, "so", None)),
    ({"input": ASKED, "output": [{"type": "message", "content": [{"type": "output_text", "text": "so"}]}]},
     OldAnswer(TURNS, "so", None)),
    ({"request": {"messages": ASKED}, "response": SAMPLE}, OldAnswer(TURNS, "so", None)),
    ({"request": {"body": {"messages": ASKED}}, "response": {"status_code": 200, "body": SAMPLE}},
     OldAnswer(TURNS, "so", None)),
    ({"prompt": "2 + 2?", "answer": 4, "expected": 4}, OldAnswer("2 + 2?", "4", "4")),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "expected"), FORMS)
def test_forms_of_old_answers(raw, expected):
    assert old_answer(raw, Reader((Prompt,))) == expected


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"prompt": "x"}, "answer"),
        ({"answer": "x"}, "prompt"),
        ([], "answer"),
        ({"messages": [1], "answer": "x"}, "mess"),
    ],
)
def test_records_without_a_part_are_refused_by_its_name(raw, key):
    with pytest.raises(RecordError, match=f"^{key}"):
        old_answer(raw, Reader((Prompt,)))


def test_files_of_old_answers_name_the_line(tmp_path):
    file = tmp_path / "old.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c"}\n')
    with pytest.raises(InputError, match=r"old\.jsonl:2: answer: found none"):
        read_answers(str(file))
    file.write_text("")
    with pytest.raises(InputError, match="has no records"):
        read_answers(str(file))
    with pytest.raises(InputError, match="no such file"):
        read_answers(str(tmp_path / "other.jsonl"))


def judged(right_old, right_new, count=60, tolerance=0.0, with_references=True):
    """The verdict where old and new give these shares of right answers."""
    generator = random.Random(0)
    words = [f"{generator.choice(COLOURS)} {i}" for i in range(count)]

    def given(share):
        return [word if i < share * count else "no" for i, word in enumerate(words)]

    old = [
        OldAnswer("why?", answer, word if with_references else None)
        for answer, word in zip(given(right_old), words, strict=True)
    ]
    settings = load("evaluate", ["adapter=x", "data=demo_chat", "evaluation.bootstrap_draws=200"]).evaluation
    result, metric = compared(old, {"base": given(0.1), "new": given(right_new)}, settings, seed=0)
    assert metric == "eval/token_f1" and result.samples[0].answers.keys() == set(result.comparison.systems)
    return verdict_of(result.comparison, metric, tolerance)


def test_the_bar_is_reached_missed_or_undecided():
    assert judged(0.5, 0.9).startswith("reaches the bar: new beats old on eval/token_f1 by ")
    assert judged(0.5, 0.5).startswith("reaches the bar: no significant difference"), "the same answers"
    assert judged(0.9, 0.5).startswith("below the bar: new is worse than old")
    assert judged(0.9, 0.85).startswith("can't tell")
    assert judged(0.9, 0.85, tolerance=0.2).startswith("reaches the bar")
    assert judged(0.5, 0.9, count=8).startswith("can't tell"), "too few prompts"
    agreed = judged(0.9, 0.9, with_references=False)
    assert agreed.startswith("agreement with the old answers: eval/token_f1") and "new beats base" in agreed


def test_some_right_answers_are_too_few():
    old = [OldAnswer("a", "b", "c"), OldAnswer("a", "b", None)]
    settings = load("evaluate", ["adapter=x", "data=demo_chat", "evaluation.bootstrap_draws=200"]).evaluation
    with pytest.raises(InputError, match="1 of 2 answers have a right one"):
        compared(old, {"base": ["x", "x"], "new": ["x", "x"]}, settings, seed=0)


def test_the_base_answers_as_an_endpoint_would():
    job = load("evaluate", ["adapter=x", "data=demo_chat", "evaluation.max_new_tokens=8"])
    base = load("check", ["model=demo", "data.train=x"]).model
    prompts = ["Ann: What a day!", (Message("user", "What is red?"),)]
    found = answers_of(base, {"base": None, "new": None}, prompts, job.evaluation, max_tokens=128, use_gpu=False)
    assert found["base"] == found["new"] and len(found["new"]) == 2 and all(found["new"])


def test_a_version_of_another_base_is_refused(tmp_path, monkeypatch):
    from types import SimpleNamespace

    card = SimpleNamespace(base_loading=load("check", ["model=demo", "data.train=x"]).model.loading())
    card.base_revision, card.base = "other", "elsewhere"
    version = SimpleNamespace(card=card, reference="wit@1")
    registry = SimpleNamespace(resolve=lambda reference: version)
    monkeypatch.setattr(old_answers, "Registry", lambda root: registry)
    with pytest.raises(InputError, match="wit@1 was tuned from elsewhere"):
        old_answers.compare_with_old(job_of(tmp_path, "data.train=x"), [OldAnswer("a", "b", None)], "wit@1")
