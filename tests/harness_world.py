"""Own tasks of lm-evaluation-harness that tests share, in a folder with their data."""

from __future__ import annotations

import json
from pathlib import Path

from raytune_llm.evaluation.harness_config import Harness

CHOICE = """
task: own_choice
dataset_path: json
dataset_kwargs:
  data_files: {test: DATA}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
target_delimiter: " "
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - metric: acc
"""
TEXT = """
task: own_text
dataset_path: json
dataset_kwargs:
  data_files: {test: DATA}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list:
  - metric: exact_match
  - metric: bleu
"""


def write_tasks(folder: Path, questions: list[tuple[str, list[str], int]], data: str | None = None) -> str:
    """A folder with the two tasks on these questions (text, choices, which is right); `data`: another location."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "data.jsonl"
    rows = [{"question": text, "choices": choices, "gold": gold} for text, choices, gold in questions]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("text", TEXT)):
        (folder / f"{name}.yaml").write_text(text.replace("DATA", data or str(file)))
    return str(folder)


def harness_of(*tasks: str, path: str | None = None, **values) -> Harness:
    rest = {"limit": None, "num_fewshot": None, "batch_size": 8, "apply_chat_template": False}
    return Harness(tasks=list(tasks), include_path=path, **{**rest, **values})
