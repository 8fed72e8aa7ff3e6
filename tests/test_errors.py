"""What goes wrong for a user, tried through the jobs themselves: one clear message, before anything is started where
that is possible, and what was there before stays as it was."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import ray
import torch
from worlds import write_base, write_records

from raytune_llm import cluster, session
from raytune_llm.errors import InputError
from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load
from raytune_llm.stores.registry import Registry

GOOD = {"input_text": "one two red", "output_text": "red"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny base with its train and eval files."""
    folder = tmp_path_factory.mktemp("world")
    write_base(folder / "base", "llama")
    write_records(folder / "data", count=40)
    return folder


def overrides(world, *more):
    return [
        f"model.name_or_path={world}/base",
        f"data.train={world}/data/train.jsonl",
        f"data.eval={world}/data/eval.jsonl",
        "tuning.adapter_size=4",
        *more,
    ]


OPEN = []
"""Sessions that jobs have started and not ended, where they are only counted."""


@pytest.fixture(autouse=True)
def counted_sessions(request, monkeypatch):
    """Jobs that are refused have no Ray session start while they are checked; but for one test, they are counted."""
    OPEN.clear()
    if "ray_session" not in request.fixturenames and "own_session" not in request.fixturenames:
        monkeypatch.setattr(session, "start", lambda **options: OPEN.append(options))
        monkeypatch.setattr(session, "end", OPEN.clear)


@pytest.fixture
def own_session():
    """Jobs start one, as for users."""


def refused(root, arguments):
    """What a job says that is refused and leaves no session."""
    with pytest.raises(InputError) as error:
        getattr(commands, root)(load(root, arguments))
    assert not OPEN and not ray.is_initialized()
    return str(error.value)


def refused_data(world, tmp_path, text, name="mine.jsonl"):
    file = tmp_path / name
    file.write_text(text)
    message = refused("train", overrides(world, f"data.train={file}"))
    model, *_ = overrides(world)
    assert refused("check", [model, f"data.train={file}", f"data.eval={world}/data/eval.jsonl"]) == message
    return message.replace(str(tmp_path), "")


def test_a_missing_file_is_named_with_its_neighbours(world, tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD))
    message = refused("train", overrides(world, f"data.train={tmp_path}/trian.jsonl"))
    assert f"{tmp_path}/trian.jsonl (data.train): no such file; did you mean train.jsonl?" in message
    message = refused("train", overrides(world, f"data.train={tmp_path}/data/train.jsonl"))
    assert f"no such file; its folder is missing too, the nearest that exists is {tmp_path}" in message


def test_an_empty_file(world, tmp_path):
    message = refused_data(world, tmp_path, "")
    assert "/mine.jsonl (data.train): the file is empty; expected one JSON object a line" in message


def test_broken_json_at_its_line(world, tmp_path):
    lines = [json.dumps(GOOD), '{"input_text": "a", "output_text": }', json.dumps(GOOD), "nothing"]
    message = refused_data(world, tmp_path, "\n".join(lines))
    assert message.startswith("2 problems in the data:")
    assert "/mine.jsonl:2: column 36: not JSON: expecting value" in message
    assert "and 1 more of this kind (line 4)" in message


def test_wrong_keys(world, tmp_path):
    message = refused_data(world, tmp_path, json.dumps({"question": "a", "reply": "b"}))
    assert (
        "/mine.jsonl:1: keys: found 'question', 'reply', expected a Supervised record (input_text+output_text"
        in message
    )


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"input_text": "a"}, "output_text"),
        ({"input_text": "a", "output_text": ""}, "output_text: found the string ''"),
        ({"messages": [{"role": "user", "content": "a"}]}, "there is no completion"),
        (
            {"contents": [{"role": "model", "parts": [{"text": " "}]}]},
            "contents[0].parts: found the string ' ', expected a part with text",
        ),
    ],
)
def test_no_completion(world, tmp_path, record, found):
    message = refused_data(world, tmp_path, json.dumps(GOOD) + "\n" + json.dumps(record))
    assert "/mine.jsonl:2: " in message and found in message


def test_an_unknown_model(world, tmp_path):
    for name in (f"{tmp_path}/nowhere", "nobody/nothing"):
        message = refused("train", overrides(world, f"model.name_or_path={name}"))
        assert message.startswith(f"model.name_or_path={name}: no ")
    assert "the id of a model on the hub that this machine can reach" in message


def test_a_model_folder_without_weights_or_config(world, tmp_path):
    shutil.copytree(world / "base", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    message = refused("train", overrides(world, f"model.name_or_path={tmp_path}/base"))
    assert f"model.name_or_path={tmp_path}/base has no *.safetensors weights; other formats are not loaded" in message
    (tmp_path / "base" / "config.json").unlink()
    message = refused("train", overrides(world, f"model.name_or_path={tmp_path}/base"))
    assert f"model.name_or_path={tmp_path}/base has no config.json; found [" in message


def test_an_adapter_size_beyond_what_the_base_allows(world):
    remedy = "is beyond what the base allows: its smallest adapted layer has a side of 32; choose 1 to 32"
    assert refused("train", overrides(world, "tuning.adapter_size=33")) == f"tuning.adapter_size=33 {remedy}"
    message = refused("sweep", overrides(world, "sweep.space.tuning.adapter_size=[4,64]"))
    assert f"tuning.adapter_size=64 {remedy}" in message
    message = refused(
        "sweep",
        overrides(
            world,
            "sweep/search=random",
            "sweep.space.tuning.adapter_size={min: 1, max: 48, distribution: int_uniform}",
        ),
    )
    assert f"tuning.adapter_size=48 {remedy}" in message


def test_a_batch_that_cannot_be_divided(world):
    message = refused("train", overrides(world, "tuning.batch_size=3", "scaling.num_workers=2"))
    assert message == ("tuning.batch_size=3 can't be divided among scaling.num_workers=2; make it a multiple")
    message = refused("sweep", overrides(world, "sweep.space.tuning.batch_size=[4,5]", "scaling.num_workers=2"))
    assert "tuning.batch_size=5 can't be divided among scaling.num_workers=2" in message
    message = refused("train", overrides(world, "tuning.batch_size=8", "tuning.micro_batch_size=3"))
    assert message == "tuning.micro_batch_size=3 doesn't divide each worker's 8 examples; choose a divisor"


def test_more_tokens_than_the_context(world, own_session):
    message = refused("train", overrides(world, "data.max_tokens=4096"))
    assert message.startswith(
        "data.max_tokens=4096 is more than the base's context of 128 tokens; set it to 128 or less"
    )


def test_a_range_in_a_grid(world):
    message = refused("sweep", overrides(world, "sweep.space.tuning.learning_rate_multiplier={min: 0.1, max: 3.0}"))
    assert message.startswith("sweep.space.tuning.learning_rate_multiplier=a range is not allowed; allowed: a list of")
    assert "sweep/search=random" in message


def test_a_reference_that_is_not_in_the_registry(world, tmp_path):
    home = f"home={tmp_path}/home"
    message = refused("registry", ["action=show", "version=witt", home])
    assert "witt has no version in" in message and "nothing is published" in message
    unfinished = tmp_path / "home" / "registry" / "wit" / "v1"
    unfinished.mkdir(parents=True)
    (unfinished / "adapter_model.safetensors").write_text("half")
    assert "wit has no version in" in refused("registry", ["action=show", "version=wit@1", home])


@pytest.fixture
def busy_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_sweep_that_would_deploy_to_a_busy_port_does_not_start(world, busy_port):
    arguments = overrides(world, "serve.deploy=true", f"serve.port={busy_port}", "sweep.space.tuning.adapter_size=[4]")
    remedy = f"serve.port={busy_port} is in use on 127.0.0.1; choose another by serve.port=…"
    assert refused("sweep", arguments) == remedy


def test_serving_on_a_busy_port(ray_session, tmp_path, busy_port):
    job = load("serve", ["adapter=wit", f"home={tmp_path}", f"serve.port={busy_port}"])
    with pytest.raises(InputError, match=rf"serve\.port={busy_port} is in use on 127\.0\.0\.1"):
        commands.serve(job)


@pytest.mark.parametrize("root", ["serve", "evaluate"])
def test_serving_and_evaluating_what_is_not_there(ray_session, world, tmp_path, root):
    data = [f"data.test={world}/data/eval.jsonl"] if root == "evaluate" else []
    job = load(root, ["adapter=wit@3", f"home={tmp_path}", *data])
    with pytest.raises(
        InputError, match=r"wit has no version in .*/registry; nearest names: none, nothing is published"
    ):
        getattr(commands, root)(job)


def test_what_a_task_refuses_and_what_fails_in_it(ray_session):
    def task(error):
        raise error

    with pytest.raises(InputError, match=r"^no answers$"):
        cluster.as_task(task, use_gpu=False)(InputError("no answers"))
    with pytest.raises(KeyError, match="answers"):
        cluster.as_task(task, use_gpu=False)(KeyError("answers"))
    assert cluster.as_task(lambda one, *, two: one + two, use_gpu=False)(1, two=2) == 3


def test_a_task_computes_on_the_cpus_that_are_free_and_waits_for_no_others(ray_session, monkeypatch):
    import ray

    def threads():
        import torch

        return torch.get_num_threads()

    monkeypatch.setattr(cluster, "RELEASE_SECONDS", 0.5)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cluster.as_task(threads, use_gpu=False)() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cluster.as_task(threads, use_gpu=False)() == 2

    @ray.remote(num_cpus=1)
    class Endpoint:
        def is_up(self):
            return True

    endpoint = Endpoint.remote()
    assert ray.get(endpoint.is_up.remote())
    while cluster.free_cpus() != 1:  # what a node holds is reported with a delay
        pass
    assert cluster.as_task(threads, use_gpu=False)() == 1
    ray.kill(endpoint)


def test_a_function_leaves_its_process_with_the_threads_that_it_had():
    before = torch.get_num_threads()
    assert cluster.on_threads(torch.get_num_threads, before + 2)() == before + 2
    assert torch.get_num_threads() == before


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own that holds 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can be mounted here by root alone, and perhaps not at all")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> None:
    """Use up the disk of a folder but for some bytes."""
    free = shutil.disk_usage(folder).free
    (folder / "filler").write_bytes(b"\0" * (free - leave))


def small_run(world, home, run, *more):
    return overrides(
        world,
        f"home={home}",
        f"run={run}",
        "name=small",
        "tuning.steps=4",
        "tuning.eval_every=2",
        "scaling.max_failures=0",
        "evaluation.max_examples=8",
        "evaluation.max_new_tokens=4",
        "promote=always",
        *more,
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_full_disk_stops_a_job_and_leaves_what_was_there(ray_session, world, small_disk, monkeypatch):
    """While a run and a sweep store checkpoints, then, with space again, while the run that went on is published."""
    home = small_disk / "home"
    assert commands.train(load("train", small_run(world, home, "first"))) == 0
    registry = Registry(f"{home}/registry")
    before = snapshot(Path(registry.root))

    fill(small_disk, leave=40_000)
    second = load("train", small_run(world, home, "second"))
    with pytest.raises(InputError, match=rf"no space left in home={home}, .* run=second resumes"):
        commands.train(second)
    axes = ["adapter_size=[4]", "learning_rate_multiplier=[1.0]", "steps=[4]"]
    space = [f"sweep.space.tuning.{axis}" for axis in axes]
    with pytest.raises(InputError, match=rf"no space left in home={home}, .* run=third resumes"):
        commands.run_sweep(load("sweep", small_run(world, home, "third", "sweep/backend=ray_train", *space)))
    assert snapshot(Path(registry.root)) == before

    (small_disk / "filler").unlink()
    publish = Registry.publish

    def publish_on_full_disk(self, name, source, card):
        fill(small_disk, leave=8_000)
        return publish(self, name, source, card)

    monkeypatch.setattr(Registry, "publish", publish_on_full_disk)
    with pytest.raises(InputError, match=r"no space left for small .* nothing was published, earlier versions and"):
        commands.train(second)
    assert snapshot(Path(registry.root)) == before
    assert [version.reference for version in registry.list()] == ["small@1"]
    assert registry.show("small@champion").aliases == ("champion",)
