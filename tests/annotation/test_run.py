"""The whole stage on Ray Data: requests sent once, cached, resumed after kill −9; a tuning job's first stage."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_openai import serving

from raytune_llm.data.files import load as load_data
from raytune_llm.data.records import Rationale
from raytune_llm.errors import InputError
from raytune_llm.jobs import annotate, commands, config
from raytune_llm.jobs.prepare import prepare

ROOT = Path(__file__).parents[2]
NUM_RECORDS, BATCH_SIZE = 24, 4


def write_questions(folder: Path, count: int = NUM_RECORDS) -> Path:
    """Solved examples first, then questions: every other one with a label, a third of those labels contradicted."""
    lines = [{"input_text": f"say {i}", "output_text": str(i), "rationale": f"it is {i}"} for i in range(100, 102)]
    for i in range(count):
        lines.append({"input_text": f"say {i}"} | ({"output_text": str(i)} if i % 2 else {}))
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def teach(prompt: str) -> str:
    """Right, but for multiples of 3; unreadable for 10."""
    number = int(re.findall(r"say (\d+)", prompt)[-1])
    if number == 10:
        return "I don't know"
    return f"Reason: the question names {number} itself.\nAnswer: {number + (number % 3 == 0)}"


def arguments(url, folder, *overrides):
    return [
        "teacher=openai",
        f"teacher.base_url={url}",
        "teacher.model=big",
        "teacher.api_key_env=null",
        "teacher.concurrent_requests=2",
        "teacher.usd_per_million_prompt_tokens=5",
        f"home={folder / 'home'}",
        f"data.train={write_questions(folder)}",
        f"output={folder / 'out.jsonl'}",
        f"annotation.batch_size={BATCH_SIZE}",
        *overrides,
    ]


def test_requests_are_sent_once_and_responses_filtered_again(ray_session, tmp_path, capfd):
    with serving(teach) as server:
        given = arguments(server.url, tmp_path)
        assert commands.annotate(config.load("annotate", given)) == 0
        text, errors = capfd.readouterr()
        assert not [word for word in ("Dataset", "Progress bars", "pyarrow", "HTTP") if word in errors + text]
        assert server.num_requests == NUM_RECORDS
        records = load_data(
            config.load("check", ["model=demo", f"data.train={tmp_path / 'out.jsonl'}", "data.eval_size=2"]).data,
            (Rationale,),
            seed=0,
        )
        by_prompt = {record.prompt: record for record in [*records.train, *records.eval]}
        assert by_prompt["say 5"] == Rationale("say 5", "5", "the question names 5 itself.")
        assert by_prompt["say 9"] == Rationale("say 9", "9", None)  # contradicted
        assert by_prompt["say 6"].label == "7" and "say 10" not in by_prompt
        assert by_prompt["say 100"].rationale == "it is 100"
        assert "records     26: 19 annotated, 2 skipped, 5 answers rejected" in text
        assert "contradicts the given label: 4\n" in text and "not in the requested layout: 1\n" in text
        assert "written     25, 1 dropped without a label" in text
        assert "agreement   66.7% of 12 given labels match the teacher's" in text
        assert f"requests    24 new, {24 * 110} tokens, 0.0120 USD" in text
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        row = next(row for row in rows if row["input_text"] == "say 5")
        assert row["teacher"].startswith("big at ") and row["cost_usd"] == pytest.approx(5e-4)
        assert len(row["prompt_hash"]) == 64
        # other filters need no request
        assert commands.annotate(config.load("annotate", [*given, "annotation.agreement=false"])) == 0
        assert "24 of them cached" in capfd.readouterr().out and server.num_requests == NUM_RECORDS


def test_a_teacher_that_fails_ends_the_job_with_its_reason(ray_session, tmp_path):
    with (
        serving(teach, refuse=lambda number: 401) as server,
        pytest.raises(
            InputError, match="HTTP 401: refused with 401\nThe responses so far are cached; the same command resumes"
        ),
    ):
        commands.annotate(config.load("annotate", arguments(server.url, tmp_path)))


def test_a_local_teacher_and_a_missing_one(ray_session, tmp_path, capsys):
    """An untuned base never answers in the layout, but it is loaded, run in batches and its responses are cached."""
    given = [
        "teacher=local",
        "teacher.model.name_or_path=${demo:base}",
        "teacher.chat=false",
        "prompt=plain",
        "annotation.max_new_tokens=8",
        f"home={tmp_path}",
        f"data.train={write_questions(tmp_path, 5)}",
    ]
    assert commands.annotate(config.load("annotate", given)) == 0
    assert "requests    5 new" in capsys.readouterr().out
    assert len(list(tmp_path.glob("annotations/*/*.jsonl"))) == 1
    with pytest.raises(InputError, match="teacher=none can't annotate"):
        commands.annotate(config.load("annotate", ["teacher=none", *given[3:]]))


def test_the_first_stage_of_a_tuning_job(ray_session, tmp_path):
    with serving(teach) as server:
        given = [item for item in arguments(server.url, tmp_path) if not item.startswith("output=")]
        given += ["method=dss", "model=demo", "run=r1"]
        missing = config.load("train", [*given, f"data.eval={tmp_path / 'missing.jsonl'}"])
        with pytest.raises(InputError, match=r"data\.eval"):
            annotate.annotated(missing)
        assert server.num_requests == 0
        held_out = tmp_path / "eval.jsonl"
        held_out.write_text(json.dumps({"input_text": "say 1", "output_text": "1"}) + "\n")
        job = annotate.annotated(config.load("train", [*given, f"data.eval={held_out}"]))
        assert job.data.train == f"{tmp_path}/home/runs/tuned/r1/annotated.jsonl"
        assert len(prepare(job).examples.train) == NUM_RECORDS + 1


@pytest.mark.slow  # two jobs of their own, each with its Ray session
def test_a_killed_job_resumes(tmp_path):
    """kill −9 of the driver: at most the batch in flight is sent again, nothing that is cached."""
    with serving(teach, seconds=0.15) as server:
        command = [sys.executable, str(ROOT / "jobs" / "annotate.py"), *arguments(server.url, tmp_path)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        first = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
        while sum(server.received.values()) < 2 * BATCH_SIZE + 1:
            assert first.poll() is None
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert second.returncode == 0, second.stderr
        assert set(server.received.values()) <= {1, 2} and len(server.received) == NUM_RECORDS
        assert sum(count == 2 for count in server.received.values()) <= BATCH_SIZE
        kept = int(re.search(r"requests to .*, (\d+) of them cached", second.stdout).group(1))
        assert kept >= 2 * BATCH_SIZE
        assert len((tmp_path / "out.jsonl").read_text().splitlines()) == NUM_RECORDS + 1
