"""lm-evaluation-harness: generation by both routes, and log-likelihoods that equal those of transformers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
from check import BASE, CHAT, MODEL, TOKENIZER, URL, asked
from lm_eval.tasks import TaskManager

QUESTIONS = [
    {"question": "Is it a good idea to miss the bus?", "choices": ["yes", "no", "never mind"], "answer": 1},
    {"question": "The bus is late. What a lovely day!", "choices": ["sarcastic", "sincere", "sad"], "answer": 0},
    {"question": "The soup is warm.", "choices": ["sarcastic", "sincere", "sad"], "answer": 1},
]
COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
doc_to_text: "{{question}}\\n"
"""
CHOICE = "task: own_choice\noutput_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: answer\n" + COMMON
GENERATE = (
    'task: own_generate\noutput_type: generate_until\ndoc_to_target: "{{choices[answer]}}"\n'
    'generation_kwargs: {until: ["\\n"], max_gen_toks: 8, temperature: 0, do_sample: false}\n'
    "metric_list: [{metric: exact_match}]\n" + COMMON
)
FOLDER = Path(tempfile.mkdtemp(prefix="own_tasks_"))


def evaluated(kind: str, task: str, *, chat: bool = False, **arguments: Any) -> list[Any]:
    """The answers of each question."""
    found = lm_eval.simple_evaluate(
        model=kind,
        model_args=arguments,
        tasks=[task],
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
        apply_chat_template=chat,
        bootstrap_iters=0,
        log_samples=True,
        batch_size=1,
    )
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples]


def by_completions(task: str, **more: Any) -> list[Any]:
    url = f"{URL}/completions"
    return evaluated("local-completions", task, base_url=url, tokenizer=TOKENIZER, max_length=200, **more)


def log_likelihoods() -> bool:
    served = by_completions("own_choice", model=BASE)
    local = evaluated("hf", "own_choice", pretrained=TOKENIZER, max_length=200, dtype="float32", device="cpu")
    pairs = [(a, b) for one, other in zip(served, local, strict=True) for a, b in zip(one, other, strict=True)]
    difference = max(abs(float(a[0]) - float(b[0])) for a, b in pairs)
    if difference > 1e-3 or any(str(a[1]) != str(b[1]) for a, b in pairs):
        raise ValueError(f"they differ by {difference} nats")
    return True


def by_chat() -> bool:
    url = f"{URL}/chat/completions"
    answers = evaluated("local-chat-completions", "own_generate", chat=True, base_url=url, model=CHAT)
    return len(answers) == len(QUESTIONS)


def batched() -> bool:
    one = by_completions("own_choice", model=MODEL)
    return one == by_completions("own_choice", model=MODEL, num_concurrent=2)


FOLDER.joinpath("questions.json").write_text("\n".join(map(json.dumps, QUESTIONS)))
for name, text in (("choice", CHOICE), ("generate", GENERATE)):
    FOLDER.joinpath(f"{name}.yaml").write_text(text.replace("FILE", str(FOLDER / "questions.json")))
asked("local-chat-completions: generate_until", by_chat)
asked("local-completions: generate_until", lambda: len(by_completions("own_generate", model=MODEL)) == len(QUESTIONS))
asked("local-completions: multiple choice, as transformers' within 0.001 nats", log_likelihoods)
asked("local-completions: num_concurrent=2", batched)
