"""jobs/check.py: what it prints, and the report it leaves behind."""

import json

import pytest
from worlds import write_base

from raytune_llm.data.doctor.advice import Horizon
from raytune_llm.data.files import load
from raytune_llm.errors import InputError
from raytune_llm.jobs import commands, config
from raytune_llm.jobs.prepare import horizon_of


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "llama")


def job_of(base, folder, count, *overrides, command="check"):
    file = folder / "train.jsonl"
    file.write_text(
        "".join(json.dumps({"input_text": f"red {i}", "output_text": f"cat {i}"}) + "\n" for i in range(count))
    )
    given = [f"model.name_or_path={base}", f"data.train={file}", f"home={folder}/home", *overrides]
    return config.load(command, given)


def reports(folder):
    return sorted(path.relative_to(folder / "home/checks") for path in folder.glob("home/checks/**/report.*"))


def test_the_report_is_written_and_named(base, tmp_path, capsys):
    assert commands.check(job_of(base, tmp_path, 200)) == 0
    [page, report] = reports(tmp_path)
    printed = capsys.readouterr().out
    assert f"report: {tmp_path}/home/checks/{page}" in printed and "start with tuning.steps=" in printed
    assert json.loads((tmp_path / "home/checks" / report).read_text())["verdict"] == "sound"
    assert str(tmp_path / "train.jsonl") in (tmp_path / "home/checks" / page).read_text()


def test_checks_of_one_second_have_reports_of_their_own(base, tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    for _ in range(2):
        assert commands.check(job_of(base, tmp_path, 40)) == 0
    folders = {report.parts[0] for report in reports(tmp_path)}
    assert len(folders) == 2 and all(folder.startswith("20260101-000000-") for folder in folders)


def test_weights_of_sources_are_shown_beside_them(base, tmp_path, capsys):
    weighted = "[{path: %s, weight: 2}, {path: %s, weight: 0.5}, %s]"
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    for path in paths:
        rows = [{"input_text": f"{path.stem} {i}", "output_text": f"cat {i}"} for i in range(20)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = f"data.train={weighted % tuple(paths)}"
    assert commands.check(job_of(base, tmp_path, 40, given, f"data.eval={paths[2]}")) == 0
    printed = capsys.readouterr().out
    [page, report] = reports(tmp_path)
    page = (tmp_path / "home/checks" / page).read_text()
    for path, times in zip(paths, (" × 2", " × 0.5", ""), strict=True):
        assert f"{20:>21}  from {path}{times}\n" in printed
        assert f"{path}{times}<" in page
    splits = json.loads((tmp_path / "home/checks" / report).read_text())["splits"]
    assert splits["train"]["weights"] == {str(paths[0]): 2.0, str(paths[1]): 0.5}
    assert splits["eval"]["weights"] == {}


def with_tools(folder, *turns):
    """Twenty chats, three of them with tools and these turns too."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = []
    for i in range(20):
        end = {"role": "assistant", "content": f"cat {i}"}
        extra = {"tools": tools} if i < 3 else {}
        rows.append({"messages": [{"role": "user", "content": f"red {i}"}, *(turns if i < 3 else ()), end], **extra})
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.train={file}"


def test_the_advice_of_a_template_without_tools_works(base, tmp_path, capsys):
    called = with_tools(
        tmp_path,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "dry", "tool_call_id": "c"},
    )
    with pytest.raises(InputError, match=r"or data\.on_error=skip leaves such records out"):
        commands.check(job_of(base, tmp_path, 1, called))
    assert commands.check(job_of(base, tmp_path, 1, called, "data.on_error=skip")) == 0
    assert "! 3 of 20 lines are left out because they can't be used; rejects.jsonl has them" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"or data\.ignore=\[tools\] leaves them out"):
        commands.check(job_of(base, tmp_path, 1, with_tools(tmp_path)))
    assert commands.check(job_of(base, tmp_path, 1, with_tools(tmp_path), "data.ignore=[tools]")) == 0


def test_one_line_is_no_lines(base, tmp_path, capsys):
    job = job_of(base, tmp_path, 20, "data.on_error=skip")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("{}\n")
    assert commands.check(job) == 0
    printed = capsys.readouterr().out
    assert "! 1 of 21 lines is left out because they can't be used; rejects.jsonl has them" in printed
    assert "\n1 line left out, with the reasons: " in printed


def test_refused_data_have_a_report_too(base, tmp_path, capsys):
    with pytest.raises(InputError, match="verdict: not usable"):
        commands.check(job_of(base, tmp_path, 200, "data.max_tokens=2"))
    [_, report] = reports(tmp_path)
    assert json.loads((tmp_path / "home/checks" / report).read_text())["verdict"].startswith("not usable")
    assert "report: " in capsys.readouterr().out


def test_the_report_is_written_where_it_is_wanted(base, tmp_path, capsys):
    assert commands.check(job_of(base, tmp_path, 200, f"report='{tmp_path}/a,b/report'")) == 0
    assert f"report: {tmp_path}/a,b/report/report.html" in capsys.readouterr().out and reports(tmp_path) == []
    content = json.loads((tmp_path / "a,b/report/report.json").read_text())
    assert content["verdict"] == "sound" and content["parameters"] > 0
    with pytest.raises(InputError, match="verdict: not usable"):
        commands.check(job_of(base, tmp_path, 200, f"report={tmp_path}/refused", "data.max_tokens=2"))
    assert json.loads((tmp_path / "refused/report.json").read_text())["verdict"].startswith("not usable")
    with pytest.raises(InputError, match="report"):
        job_of(base, tmp_path, 20, "report=x", command="train")


def test_a_home_that_is_not_writable_is_no_reason_to_fail(base, tmp_path, capsys):
    (tmp_path / "home").write_text("a file")
    assert commands.check(job_of(base, tmp_path, 200)) == 0
    assert f"report: not written: {tmp_path}/home/checks/" in capsys.readouterr().out


def test_epochs_are_those_of_the_job(base, tmp_path):
    def horizon(*overrides, command="check"):
        job = job_of(base, tmp_path, 20, *overrides, command=command)
        return horizon_of(job, load(job.data, job.method.records, job.seed))

    assert horizon() == Horizon(8)
    own = ["tuning.steps=30", "tuning.batch_size=4"]
    assert horizon(*own, command="train") == Horizon(4, 30)
    assert horizon(*own, "sweep.space.tuning.steps=[10,20]", command="sweep") == Horizon(4, None)
    (tmp_path / "more.jsonl").write_text((tmp_path / "train.jsonl").read_text().replace("red", "blue"))
    mixture = f"data.train=[{{path: {tmp_path}/train.jsonl, weight: 2}}, {{path: {tmp_path}/more.jsonl, weight: 0.5}}]"
    assert horizon(mixture, f"data.eval={tmp_path}/train.jsonl") == Horizon(8, None, 50)
