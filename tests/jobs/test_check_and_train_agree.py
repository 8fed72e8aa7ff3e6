"""What the check accepts, training accepts, and what one refuses the other does: for every method, kind of record and
defect of the data."""

import json
from functools import cache

import pytest

from raytune_llm import cluster, session
from raytune_llm.errors import InputError
from raytune_llm.jobs import check, setup
from raytune_llm.jobs.config import CONF, load
from raytune_llm.models.base import Base
from raytune_llm.training.config import with_values

TEACHER = ["method.teacher=${demo:base}"]
METHODS = {
    name: (name, TEACHER if name.startswith("distill") and name != "distill_ema" else [])
    for name in sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
}
METHODS |= {
    "rlhf_exact": ("rlhf", ["method/rewards=[exact]"]),
    "rlhf_sft": ("rlhf", ["method.sft_data=chosen"]),
    "dpo_sft": ("dpo", ["method.sft_data=chosen"]),
}
KINDS = {
    "supervised": lambda i: {"prompt": f"say {i}", "completion": f"it is {i}"},
    "chat": lambda i: {
        "messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"it is {i}"}]
    },
    "preference": lambda i: {"prompt": f"say {i}", "chosen": f"good {i}", "rejected": f"bad {i}"},
    "rationale": lambda i: {"input_text": f"say {i}", "output_text": f"{i}", "rationale": f"since {i} is {i}"},
    "text": lambda i: {"text": f"say {i}, and it is {i}"},
    "question": lambda i: {"input_text": f"say {i}"},
    "prompt": lambda i: {"prompt": f"say {i}"},
}
DEFECTS = {
    "none": (lambda row: row, []),
    "no_answer": (lambda row: {key: value for key, value in row.items() if key not in ("completion", "rejected")}, []),
    "not_text": (lambda row: {**row, next(iter(row)): 3}, []),
    "two_tokens": (lambda row: row, ["data.max_tokens=2"]),
    "strict": (lambda row: {**row, "completion": "the same"} if "completion" in row else row, ["data.strict=true"]),
}
NUM_RECORDS = 30
make_tokenizer = Base.tokenizer


@cache
def embedded():
    return make_tokenizer(load("check", ["model=demo", "data=demo_chat"]).model)


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setattr(cluster, "connect", lambda **_: None)
    monkeypatch.setattr(session, "end", lambda: None)
    monkeypatch.setattr(cluster, "uses_gpu", lambda *_, **__: False)
    monkeypatch.setattr(Base, "tokenizer", lambda base: embedded())


@cache
def composed(root: str, method: str, defect: str):
    """A job of placeholders."""
    name, own = METHODS[method]
    named = ["name=a"] if root == "train" else []
    return load(root, ["model=demo", f"method={name}", *own, "data.train=-", *named, *DEFECTS[defect][1]])


def jobs_of(tmp_path, method: str, kind: str, defect: str):
    """The check and the training of some records."""
    spoil, _ = DEFECTS[defect]
    rows = [KINDS[kind](i) for i in range(NUM_RECORDS)]
    file = tmp_path / "train.jsonl"
    file.write_text(
        "".join(json.dumps(spoil(row) if i == 7 or defect == "strict" else row) + "\n" for i, row in enumerate(rows))
    )
    values = {"data.train": str(file), "home": f"{tmp_path}/home"}
    return [with_values(composed(root, method, defect), values) for root in ("check", "train")]


def refusal(call) -> str | None:
    try:
        call()
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_both_refuse_or_both_accept(without_ray, tmp_path, method, kind, defect):
    to_check, to_train = jobs_of(tmp_path, method, kind, defect)
    checked = refusal(lambda: check.check_data(to_check))
    trained = refusal(lambda: setup.start(to_train))
    assert (checked is None) == (trained is None), f"check: {checked}\ntrain: {trained}"


def test_each_method_accepts_a_kind_and_refuses_another(without_ray, tmp_path):
    for method in METHODS:
        found = {
            kind: refusal(lambda m=method, k=kind: check.check_data(jobs_of(tmp_path, m, k, "none")[0]))
            for kind in KINDS
        }
        assert None in found.values(), f"{method}: {found}"
        assert any(found.values()), method


@pytest.mark.parametrize(("method", "kind"), [("sft", "supervised"), ("dpo", "preference"), ("dss", "rationale")])
def test_both_refuse_prompts_that_are_cut_to_next_to_nothing(without_ray, tmp_path, method, kind):
    rows = [KINDS[kind](i) for i in range(NUM_RECORDS)]
    key = next(iter(rows[0]))
    lines = [json.dumps({**row, key: f"{row[key]} {'of all that there is ' * 30}{i}"}) for i, row in enumerate(rows)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    given = ["model=demo", f"method={method}", f"data.train={tmp_path}/train.jsonl", f"home={tmp_path}/home"]
    for max_tokens, is_refused in ((16, True), (240, False)):
        own = [*given, f"data.max_tokens={max_tokens}"]
        checked = refusal(lambda own=own: check.check_data(load("check", own)))
        trained = refusal(lambda own=own: setup.start(load("train", [*own, "name=a"])))
        for found in (checked, trained):
            assert ("prompts are cut to next to nothing" in (found or "")) is is_refused, found
            assert bool(found) is is_refused
