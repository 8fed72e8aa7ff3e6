"""Equal problems are shown once, with their number; none hides another."""

import errno
import json
import os
from pathlib import Path

import pytest

from raytune_llm.data.config import OnError
from raytune_llm.data.files import DataError, Reading, Sources, load, read_records
from raytune_llm.data.reading import problems as problems_module
from raytune_llm.data.reading.problems import Problems, Rejects, kind_of
from raytune_llm.data.records import Supervised
from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load as load_job
from raytune_llm.jobs.prepare import prepare


def test_kinds_leave_out_what_differs():
    same = [
        "column 15: not JSON: expecting value, near 'abc'",
        'column 3: not JSON: expecting value, near "it\'s"',
    ]
    assert len({kind_of(text) for text in same}) == 1
    assert kind_of("messages[1].role: found the string 'bot', expected one of user") == kind_of(
        "messages[27].role: found the string 'it\\'s a bot'…, expected one of user"
    )
    assert kind_of("prompt: found null, expected a string") != kind_of("prompt: found the number 3, expected a string")


def test_thirty_equal_problems_and_another():
    found = Problems()
    for line in range(1, 31):
        found.add("a.jsonl", line, f"prompt: found the number {line}, expected a string")
    found.add("a.jsonl", 31, "completion: found null, expected a string")
    found.add("b.jsonl (data.eval): ", None, "no such file")
    assert str(found.error()) == (
        "32 problems of 3 kinds in the data:\n"
        "  a.jsonl:1: prompt: found the number 1, expected a string\n"
        "      and 29 more of this kind (lines 2, 3 …)\n"
        "  a.jsonl:31: completion: found null, expected a string\n"
        "  b.jsonl (data.eval): no such file\n"
        "Correct them, then run jobs/check.py with the same data and method: it needs no accelerator."
    )


def test_memory_has_a_bound(monkeypatch):
    monkeypatch.setattr(problems_module, "MOST_KINDS", 25)
    found = Problems()
    for line in range(1, 10_000):
        found.add("a.jsonl", line, f"{'x' * line}")
    assert len(found.groups) == 26 and found.total == 9_999
    assert "9,999 problems of 26 kinds in the data:" in str(found.error())
    assert "… and problems of 6 more kinds" in str(found.error())


def lines(tmp_path, *rows: object) -> str:
    file = tmp_path / "a.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def good(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"a{i}", "completion": f"b{i}"} for i in range(count)]


def test_lines_are_left_out_counted_and_kept_with_reasons(tmp_path):
    path = lines(tmp_path, *good(8), {"prompt": "a"}, "{", {"prompt": 3, "completion": "x"})
    job = load_job("check", ["model=demo", f"data.train={path}", "data.on_error=skip"])
    splits = load(job.data, (Supervised,), 0)
    assert len(splits.train) + len(splits.eval) == 8
    assert (splits.rejects.count, splits.num_lines) == (3, 11)
    kept = [json.loads(line) for line in splits.rejects.content().splitlines()]
    assert [(row["file"], row["line"]) for row in kept] == [(path, 9), (path, 10), (path, 11)]
    assert kept[0]["content"] == '{"prompt": "a"}' and kept[0]["problem"].startswith("completion: found no such key")
    assert kept[1]["problem"].startswith("column 2: not JSON")


def test_too_many_lines_to_skip(tmp_path):
    path = lines(tmp_path, *good(2), "{", "{", "{")
    reader = Sources(Reading(kinds=(Supervised,), on_error=OnError.skip))
    with pytest.raises(DataError, match="3 of 5 lines can't be used, too many to skip"):
        job = load_job("check", ["model=demo", f"data.train={path}", "data.on_error=skip"])
        load(job.data, (Supervised,), 0)
    assert reader.rejects.content() == b""


def test_rejects_survive_odd_text():
    rejects = Rejects()
    rejects.add("a", 1, "x", {"a": "\ud800", "b": object})
    rejects.add("a", 1, "y", "the same line, refused again")
    assert json.loads(rejects.content())["line"] == 1 and rejects.count == 1


def test_origins_of_several_sources(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(good(3), indent=1))
    path = lines(tmp_path, "", *good(2))
    job = load_job(
        "check", ["model=demo", f"data.train=[{{path: {path}, weight: 2}}]", f"data.eval={tmp_path}/*.json*"]
    )
    splits = load(job.data, (Supervised,), 0)
    assert splits.where("train", 1) == "a.jsonl:3"
    assert [splits.where("eval", i) for i in (0, 2, 4)] == ["a.jsonl:2", "b.json:2", "b.json:10"]
    assert splits.sources("eval") == {path: 2, f"{tmp_path}/b.json": 3}
    assert splits.origins["train"].weight(0) == 2.0
    assert len(read_records([path, path], "data.train", (Supervised,))) == 4


REFUSING = "{% if messages | length > 2 %}{{ raise_exception('two turns only') }}{% endif %}"
REFUSING += "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
REFUSING += "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def chats(tmp_path) -> str:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": [{**turns[0], "content": f"a{i}"}, turns[1]]} for i in range(9)]
    return lines(tmp_path, *rows, {"messages": turns * 2}, {"messages": turns * 3})


def test_what_the_template_refuses_has_file_and_line(tmp_path):
    (tmp_path / "chat.jinja").write_text(REFUSING)
    path, held = chats(tmp_path), tmp_path / "b.jsonl"
    held.write_text(Path(path).read_text())
    given = ["model=demo", f"model.chat_template={tmp_path}/chat.jinja", f"data.train={path}", f"data.eval={held}"]
    with pytest.raises(DataError) as caught:
        prepare(load_job("check", given))
    message = str(caught.value)
    assert (
        "a.jsonl:10: the chat template refuses a conversation of the turns [user, assistant, user, assistant]"
        in message
    )
    assert "two turns only" in message and "and 1 more of this kind (line 11)" in message and "b.jsonl:10: " in message

    prepared = prepare(load_job("check", [*given, "data.on_error=skip"]))
    [skipped] = [finding for finding in prepared.diagnosis.findings if finding.kind == "skipped_lines"]
    assert skipped.text == "4 of 22 lines are left out because they can't be used; rejects.jsonl has them"
    assert len(prepared.examples.train) == len(prepared.examples.eval) == 9


def test_no_room_for_the_lines_left_out(monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rejects = Rejects()
    rejects.add("a.jsonl", 1, "not JSON", "{")
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"no room for the lines left out in the temporary folder .*TMPDIR"):
        rejects.add("a.jsonl", 2, "not JSON", "{")
