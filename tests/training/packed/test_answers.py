"""Trials that are chosen by their answers: packed or each on its own base, they answer the same."""

import math
import socket

import pytest
import torch
from worlds import precomputed, spec_of, write_base, write_records

from raytune_llm.jobs.config import load
from raytune_llm.training.objective import ANSWER_SECONDS
from raytune_llm.training.packed import answers
from raytune_llm.training.packed.trials import PackedTrials
from raytune_llm.training.trial import WorkerContext, fit, gathered

STEPS, EVERY = 24, 8
METRICS = [f"eval/{name}" for name in ("exact_match", "token_f1", "rougeL", "bleu", "answer_words")]


class Log:
    def __init__(self):
        self.lines = []

    def log(self, step, metrics):
        self.lines.append((step, dict(metrics)))

    def finish(self, summary, failed): ...


@pytest.fixture(scope="module", params=["llama", "t5"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_base(folder / "base", request.param), *write_records(folder)


def job_of(world, home, *overrides):
    base, train, evaluation = world
    return load(
        "train",
        [
            *(f"model.name_or_path={base}", f"data.train={train}", f"data.eval={evaluation}", f"home={home}", "run=r"),
            *(f"tuning.eval_every={EVERY}", "tuning.batch_size=4", f"tuning.steps={STEPS}", "tuning.adapter_size=8"),
            *("tuning.early_stopping.patience=null", "name=t", "model.learning_rate=1e-2"),
            *("method.metric=eval/rougeL", "evaluation.answers_per_eval=6", "evaluation.max_new_tokens=4"),
            *overrides,
        ],
    )


def packed(*jobs):
    """The reports of trials that train together."""
    first = jobs[0]
    specs = [spec_of(job, id=f"t{place}") for place, job in enumerate(jobs)]
    pack = PackedTrials(
        specs[0].config,
        precomputed(first).examples,
        wanted=len(jobs),
        max_lora_rank=8,
        device="cpu",
        log=lambda _: None,
    )
    reports = {spec.trial.id: [] for spec in specs}
    for spec in specs:
        pack.join(spec, Log())
    while pack.trials:
        for pending in pack.advance():
            reports[pending.trial_id].append(pending.report)
            if pending.ended is not None:
                pack.leave(pending.trial_id)
    pack.close()
    return list(reports.values())


def alone(job, folder):
    """The reports of a trial on its own base, and why it ended."""
    reports = []
    folder.mkdir()
    ended = fit(
        spec_of(job),
        precomputed(job).examples,
        WorkerContext(folder, rank=0, world_size=1, use_gpu=False),
        report=lambda metrics, checkpoint: reports.append(metrics),
        run=Log(),
        progress=lambda step, metrics: None,
        resume=None,
    )
    return reports, ended


def test_a_pack_answers_as_trials_by_themselves(world, tmp_path):
    jobs = [
        job_of(world, tmp_path, f"model.learning_rate={rate}", f"tuning.adapter_size={size}")
        for rate, size in ((1e-2, 8), (5e-3, 4), (1e-5, 1))
    ]
    found = packed(*jobs)
    for place, (job, reports) in enumerate(zip(jobs, found, strict=True)):
        expected, ended = alone(job, tmp_path / str(place))
        assert ended == "complete" and [report.step for report in reports] == [8, 16, 24]
        for one, other in zip(reports, expected, strict=True):
            for name in METRICS:
                assert one.metrics[name] == pytest.approx(other[name], abs=1e-6), name
            assert one.metrics["eval/loss"] == pytest.approx(other["eval/loss"], rel=1e-3)
            for metrics in (one.metrics, other):
                assert 0 < metrics[ANSWER_SECONDS] < metrics["time/seconds"]
    answered = {tuple(report.metrics[name] for name in METRICS) for reports in found for report in reports}
    assert len(answered) > 2, "trials should answer differently"


def test_the_best_step_is_that_of_the_best_answers(world, tmp_path):
    reports, _ = alone(job_of(world, tmp_path), tmp_path / "t")
    best = [
        max(reports[: place + 1], key=lambda r: (r["eval/rougeL"], -r["eval/loss"])) for place in range(len(reports))
    ]
    assert [report["best_step"] for report in reports] == [report["step"] for report in best]


def test_a_loss_term_answers_nothing(world, tmp_path, monkeypatch):
    monkeypatch.setattr(answers.PackedAnswers, "metrics", None)
    job = job_of(world, tmp_path, "method.metric=eval/token_accuracy")
    (reports,) = packed(job)
    for metrics in (reports[-1].metrics, alone(job, tmp_path / "t")[0][-1]):
        assert not {*METRICS, ANSWER_SECONDS} & metrics.keys()


def test_patience_counts_answers(world, tmp_path):
    still = ["model.learning_rate=1e-9", "tuning.early_stopping.patience=1"]
    job = job_of(world, tmp_path, *still)
    (reports,) = packed(job)
    assert [report.step for report in reports] == [8, 16]
    found, ended = alone(job, tmp_path / "t")
    assert ([report["step"] for report in found], ended) == ([8, 16], "early stopping")


def test_a_diverged_trial_is_not_asked_and_ends(world, tmp_path):
    job = job_of(world, tmp_path, "model.learning_rate=1e30")
    (reports,) = packed(job)
    found, ended = alone(job, tmp_path / "t")
    assert ended.startswith("diverged: eval/rougeL is not finite at step 8")
    assert len(reports) == len(found) == 1
    for metrics in (reports[0].metrics, found[0]):
        assert metrics["eval/rougeL"] == -math.inf and math.isnan(metrics["eval/token_f1"])


def test_every_worker_has_all_answers_in_order(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(gather_in_process, (2, port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert (tmp_path / str(rank)).read_text() == "01234"


def gather_in_process(rank, world_size, port, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    texts = gathered(list("01234")[rank::world_size], world_size)
    with open(f"{folder}/{rank}", "w") as file:
        file.write("".join(texts))
    torch.distributed.destroy_process_group()
