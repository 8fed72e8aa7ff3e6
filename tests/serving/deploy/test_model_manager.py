"""Versions that come and go: each passes a parity check before its first answer, or is refused with the reason."""

import asyncio
import concurrent.futures
import gc
import json
import threading
import uuid
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from serving_world import greedy_text, make_base, publish, write_adapter, write_model
from test_app import TEXT, client_of, error, make_replica, text_of

from raytune_llm.data.records import Message
from raytune_llm.models import lora_folder
from raytune_llm.models.loading import load_tuned
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.deploy import model_manager
from raytune_llm.serving.engine.base import Sampling
from raytune_llm.serving.engine.decoder import LocalDecoder
from raytune_llm.serving.engine.loading import read_model
from raytune_llm.serving.engine.prompts import of_text
from raytune_llm.serving.verify.parity import PROBES, probes
from raytune_llm.stores.registry import Registry

SAMPLING = Sampling(max_tokens=8, temperature=0.0, top_p=1.0, seed=None, stop=(), num_logprobs=None, stream=False)


def refusal(client, model):
    response = client.post("/v1/completions", json={**TEXT, "model": model})
    return error(response, 404, "model_not_found", "model")


def recorded_checks(monkeypatch):
    """The versions that are checked from now on, in order."""
    checked, real = [], model_manager.check_engine

    def check(engine, served, probes):
        checked.append(served.id)
        return real(engine, served, probes)

    monkeypatch.setattr(model_manager, "check_engine", check)
    return checked


def test_versions_on_demand(growing, monkeypatch):
    registry, more = growing
    client = client_of(make_replica(registry, ["wit"], max_on_demand=4))
    closed = client_of(make_replica(registry, ["wit"]))
    checked = recorded_checks(monkeypatch)
    more("wit", 2)
    more("dry", 3)
    more("wit", 4, rank=32, dora=True)
    more("wit", 5, rank=32)
    assert len({text_of(client, name) for name in ("wit@1", "wit@2", "wit@3", "wit@4", "wit@2")}) == 4
    assert checked == ["wit@2", "wit@3", "wit@4"]
    assert [entry["id"] for entry in client.get("/v1/models").json()["data"]][-1] == "wit@4"
    assert "served: tiny, wit@1" in refusal(closed, "wit@2")
    for name in ("wit@9", "dry@1", "wit@champion", "wit@../../x", "../../wit@1", "wit@²"):
        refusal(client, name)


def test_of_more_versions_on_demand_than_may_stay_the_least_recently_used_retires(growing, monkeypatch):
    registry, more = growing
    replica = make_replica(registry, ["wit"], max_on_demand=2)
    manager, checked = replica._model_manager, recorded_checks(monkeypatch)
    for seed in range(2, 7):
        more("wit", seed)

    async def found(*numbers):
        for number in numbers:
            assert (await manager.find(f"wit@{number}")).id == f"wit@{number}"
        return [entry.id for entry in manager.catalog.entries[1:]]

    async def run():
        assert await found(2, 3, 2, 4) == ["wit@1", "wit@2", "wit@4"]
        assert [item async for item in replica._engine.generate("wit@3", [5], SAMPLING)][-1].finish is not None
        assert await found(3) == ["wit@1", "wit@4", "wit@3"] and checked == ["wit@2", "wit@3", "wit@4"]
        assert await found(5, 6) == ["wit@1", "wit@5", "wit@6"]
        assert set(replica._engine._resident.adapter_cache.resident) == {f"wit@{number}" for number in (1, 4, 3, 5, 6)}
        await found(2)
        assert checked[3:] == ["wit@5", "wit@6", "wit@2"]

    asyncio.run(run())


def test_versions_that_have_come_and_gone_leave_nothing_behind(growing, tmp_path, monkeypatch):
    base = make_base(tmp_path / "tiny")
    folder, registry = write_adapter(base, tmp_path / "new", seed=2), Registry(f"memory://test-{uuid.uuid4().hex}")
    for number in range(8):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 100 + number // 2}))
        publish(registry, base, "wit", folder)
    replica = make_replica(registry, ["wit@1"], max_on_demand=2)
    monkeypatch.setattr(model_manager, "RETIRE_SECONDS", 0.0)

    async def left_by(*numbers):
        for number in numbers:
            served = await replica._model_manager.find(f"wit@{number}")
            tokens.add(served.tokens.tokenizer)
            sampling = replace(SAMPLING, num_logprobs=2)
            assert [item async for item in replica._engine.generate(served.id, [5], sampling)]
            del served
        while replica._model_manager._retiring or replica._engine._resident.num_adapted_modules.keys() != {
            entry.id for entry in replica._model_manager.catalog.entries
        }:
            await asyncio.sleep(0.01)
        gc.collect()
        return len(tokens), len([path for path in replica._cache.path.iterdir() if path.is_dir()])

    tokens = weakref.WeakSet()
    assert asyncio.run(left_by(1, 2, 3)) == (2, 3)
    assert asyncio.run(left_by(4, 5, 6, 7, 8, 7)) == (2, 3)
    replica.close()


def hardly_tuned(version):
    """An adapter that PEFT has just made: its B is 0."""
    from safetensors.torch import load_file, save_file

    file = Path(version.path) / "adapter_model.safetensors"
    save_file({name: tensor * ("lora_A" in name) for name, tensor in load_file(file).items()}, file)


def truncated(version):
    file = Path(version.path) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(truncated, "not a whole safetensors file"), (hardly_tuned, "can't be distinguished from its base")],
)
def test_a_failing_version_on_demand_is_refused_with_the_reason_and_tried_once(growing, monkeypatch, damage, reason):
    registry, more = growing
    replica = make_replica(registry, ["wit"], max_on_demand=4)
    client = client_of(replica)
    before, checked = text_of(client, "wit"), recorded_checks(monkeypatch)
    damage(more("wit", 2))
    message = refusal(client, "wit@2")
    assert "the model 'wit@2' is not served here" in message and reason in message
    num_tried = len(checked)
    assert refusal(client, "wit@2") == message and len(checked) == num_tried <= 1
    assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["tiny", "wit@1", "wit"]
    assert text_of(client, "wit") == before
    assert replica._engine._resident.adapter_cache.resident == ("wit@1",)


def test_an_adapter_that_the_engine_applies_otherwise_than_peft_is_refused(growing, monkeypatch):
    registry, more = growing
    client = client_of(make_replica(registry, ["wit"], max_on_demand=4))
    read = lora_folder.read_scaled_weights
    monkeypatch.setattr(
        "raytune_llm.serving.engine.resident_models.read_scaled_weights",
        lambda *given: {name: (a, b * 1.1) for name, (a, b) in read(*given).items()},
    )
    more("wit", 2)
    assert "wit@2 is not what was tuned: after 'The' its log-probabilities are" in refusal(client, "wit@2")
    monkeypatch.undo()
    monkeypatch.setattr(LocalDecoder, "num_adapted_modules", lambda self, id: 5)
    more("wit", 3)
    assert "wit@3 is applied to 5 modules here, by PEFT to 6" in refusal(client, "wit@3")


def test_others_answer_while_a_version_is_checked_and_all_requests_for_it_wait_for_one_load(growing, monkeypatch):
    registry, more = growing
    replica = make_replica(registry, ["wit"], max_on_demand=4)
    more("wit", 2)
    may_continue, checked, real = threading.Event(), [], model_manager.check_engine

    def check(engine, served, probes):
        assert may_continue.wait(60)
        checked.append(served.id)
        return real(engine, served, probes)

    monkeypatch.setattr(model_manager, "check_engine", check)

    async def run():
        finding = [asyncio.create_task(replica._model_manager.find("wit@2")) for _ in range(3)]
        await asyncio.sleep(0)
        finding.pop().cancel()  # a client that leaves
        text = TEXT["prompt"]
        served = await replica._model_manager.find("wit")
        answer = [d async for d in replica._engine.generate("wit@1", served.tokens.prompt(text), SAMPLING)]
        assert answer[-1].finish is not None and not any(task.done() for task in finding)
        may_continue.set()
        return [(await task).id for task in finding]

    assert asyncio.run(run()) == ["wit@2", "wit@2"]
    assert checked == ["wit@2"]


def test_named_versions_that_cannot_be_served_leave_the_others_alone(growing):
    registry, more = growing
    replica = make_replica(registry, ["wit"])
    client = client_of(replica)
    more("taste", 2, kind="reward")
    hardly_tuned(more("new", 3))
    more("dry", 4)
    wanted = ["wit@1", "taste@1", "new@1", "dry@1", "gone@3", "../../x"]
    asyncio.run(replica.reconfigure({"versions": wanted}))
    assert list(replica.refused()) == ["taste@1", "gone@3", "../../x", "new@1"]
    assert "taste@1 is of kind reward, which gives no answers; allowed: adapter, model" in refusal(client, "taste@1")
    assert "can't be distinguished from its base" in refusal(client, "new")
    assert text_of(client, "wit") != text_of(client, "dry")
    asyncio.run(replica.reconfigure({"versions": ["wit@1", "dry@1"]}))
    assert replica.refused() == {}


def test_kinds_that_give_no_answers_are_refused_on_demand_too(growing):
    registry, more = growing
    replica = make_replica(registry, ["wit"], max_on_demand=1)
    more("wit", 2, kind="reward")
    with pytest.raises(ApiError, match="wit@2 is of kind reward, which gives no answers"):
        asyncio.run(replica._model_manager.find("wit@2"))


@pytest.mark.parametrize("is_encoder_decoder", [False, True], ids=["causal", "encoder_decoder"])
def test_every_kind_of_version_passes_the_check_and_answers_as_peft_does(tmp_path, is_encoder_decoder):
    base = make_base(tmp_path / "tiny", is_encoder_decoder=is_encoder_decoder)
    registry = Registry(str(tmp_path / "registry"))
    publish(registry, base, "lora", write_adapter(base, tmp_path / "lora", seed=1))
    publish(registry, base, "dora", write_adapter(base, tmp_path / "dora", seed=2, dora=True))
    publish(registry, base, "full", write_model(base, tmp_path / "full", seed=3), kind="model")
    replica = make_replica(registry, ["lora", "dora", "full"])
    assert replica.refused() == {}
    client, found = client_of(replica), {}
    for entry in replica._model_manager.catalog.entries[1:]:
        served = read_model(entry, base, registry, tmp_path)
        expected = greedy_text(load_tuned(served.folder, base), served, of_text(served, TEXT["prompt"]).ids, 8)
        found[entry.id] = text_of(client, entry.id)
        assert found[entry.id].lstrip() == expected
    assert len(set(found.values())) == 3
    replica.close()


def test_probes_are_the_cards_or_plain_ones(growing):
    registry, _ = growing
    version = registry.resolve("wit")
    assert probes(version) == list(PROBES)
    version.card.probes.extend(["a", [{"role": "user", "content": "b"}]])
    assert probes(version) == ["a", (Message("user", "b"),)]


def test_clients_ask_at_once_for_several_new_versions(growing):
    registry, more = growing
    client = client_of(make_replica(registry, ["wit"], max_on_demand=4))
    for seed in (2, 3, 4):
        more("wit", seed)
    with client, concurrent.futures.ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(lambda name: text_of(client, name), ["wit@2", "wit@3", "wit@4"] * 2))
    assert texts[:3] == texts[3:] and len(set(texts)) == 3
