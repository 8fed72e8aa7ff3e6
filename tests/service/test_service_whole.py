"""The whole service for real: openai's client, Ray jobs, a model that answers; and killed while jobs run."""

import random
import re
import time

import openai
import pytest
from service_process import ServiceProcess, chats

from raytune_llm.stores.registry import Registry

pytestmark = pytest.mark.slow
JOB_SECONDS = 900


def ended(service, id, seconds=JOB_SECONDS):
    """A job at its end, however often the service is away meanwhile."""
    found = []

    def holds():
        found[:] = [service.patient(lambda: service.client().fine_tuning.jobs.retrieve(id))]
        return found[0].status in ("succeeded", "failed", "cancelled")

    service.wait(holds, seconds, needs_process=False)
    return found[0]


@pytest.fixture
def service(tmp_path):
    found = ServiceProcess(tmp_path / "home", "service.max_jobs=2").start()
    yield found
    if not found.runs:
        found.start()
    assert found.stop() == 0


def test_the_whole_life_of_a_job(service, tmp_path):
    client = service.client()
    train = client.files.create(file=chats(tmp_path, 256).open("rb"), purpose="fine-tune")
    valid = client.files.create(file=chats(tmp_path, 64, "valid.jsonl", "eval").open("rb"), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="demo", training_file=train.id, validation_file=valid.id, suffix="wit", metadata={"team": "a"}
    )
    assert job.status == "validating_files" and job.hyperparameters.n_epochs == "auto"
    job = ended(service, job.id)
    assert job.status == "succeeded", (job.error, service.log.read_text()[-3000:])
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert any("successfully completed" in message for message in messages)
    assert any(event.type == "metrics" for event in client.fine_tuning.jobs.list_events(job.id))
    [checkpoint] = client.fine_tuning.jobs.checkpoints.list(job.id)
    name = job.fine_tuned_model or checkpoint.fine_tuned_model_checkpoint
    answer = client.chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": "Is Amy sarcastic or sincere?"}],
    )
    assert answer.choices[0].message.content and answer.model == checkpoint.fine_tuned_model_checkpoint
    csv = client.files.content(job.result_files[0]).text
    assert csv.startswith("step,train_loss") and len(csv.splitlines()) > 1
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="wit@77", messages=[{"role": "user", "content": "x"}])


def test_bad_files_cancel_pause_and_resume(service, tmp_path):
    client = service.client()
    bad = chats(tmp_path, 20, "bad.jsonl")
    bad.write_text(bad.read_text() + '{"messages": [{"role": "user"}]}\n')
    file = client.files.create(file=bad.open("rb"), purpose="fine-tune")
    job = ended(service, client.fine_tuning.jobs.create(model="demo", training_file=file.id).id)
    assert job.status == "failed" and job.error.param == "training_file" and "21" in job.error.message
    assert str(service.home) not in job.error.message
    good = client.files.create(file=chats(tmp_path, 256).open("rb"), purpose="fine-tune")
    paused = client.fine_tuning.jobs.create(
        model="demo",
        training_file=good.id,
        hyperparameters={"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0},
    )
    cancelled = client.fine_tuning.jobs.create(model="demo", training_file=good.id)
    service.wait(lambda: client.fine_tuning.jobs.retrieve(paused.id).status == "running", 300)
    client.fine_tuning.jobs.pause(paused.id)
    client.fine_tuning.jobs.cancel(cancelled.id)
    service.wait(lambda: client.fine_tuning.jobs.retrieve(paused.id).status == "paused", 120)
    assert ended(service, cancelled.id).status == "cancelled"
    client.fine_tuning.jobs.resume(paused.id)
    job = ended(service, paused.id)
    assert job.status == "succeeded" and re.fullmatch(r"ft-demo@\d+", job.fine_tuned_model)


def test_killed_ten_times_while_five_jobs_run(service, tmp_path):
    """Every job ends as one that was left alone, none runs twice, no file is lost."""
    client = service.client()
    files = [
        client.files.create(file=chats(tmp_path, 128, f"{i}.jsonl").open("rb"), purpose="fine-tune").id
        for i in range(5)
    ]
    values = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 3.0}
    create = dict(model="demo", hyperparameters=values, seed=7)
    alone = client.fine_tuning.jobs.create(**create, training_file=files[0], suffix="alone")
    assert ended(service, alone.id).status == "succeeded"
    jobs = [
        client.fine_tuning.jobs.create(**create, training_file=file, suffix=f"killed-{i}").id
        for i, file in enumerate(files)
    ]
    chance = random.Random(0)
    for _ in range(10):
        time.sleep(chance.uniform(0.5, 15))
        service.kill()
        service.start()
    registry = Registry(f"{service.home}/registry")
    expected = registry.show("alone@1").card
    for i, id in enumerate(jobs):
        job = ended(service, id)
        assert job.status == "succeeded", (job.error, service.log.read_text()[-3000:])
        [version] = registry.versions(f"killed-{i}")
        assert version.card.step == expected.step
        assert version.card.metrics["eval/loss"] == pytest.approx(expected.metrics["eval/loss"], rel=1e-3)
        messages = [event.message for event in service.client().fine_tuning.jobs.list_events(id, limit=100)]
        assert len(messages) == len(set(messages)), messages
    for file in files:
        assert service.client().files.content(file).text == chats(tmp_path, 128).read_text()
