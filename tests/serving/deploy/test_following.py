"""Aliases are followed: a moved one reaches a running replica, checked before its first answer, and harms no other."""

import asyncio
import dataclasses
import logging
import threading

import pytest
from test_app import TEXT, client_of, error, make_replica, text_of
from test_model_manager import hardly_tuned, recorded_checks, refusal
from test_serve_config import serve

from raytune_llm.errors import InputError
from raytune_llm.serving.deploy import model_manager, replica
from raytune_llm.serving.deploy.replica import Replica
from raytune_llm.serving.engine.base import Sampling

SAMPLING = Sampling(max_tokens=8, temperature=0.0, top_p=1.0, seed=None, stop=(), num_logprobs=None, stream=True)


@pytest.fixture
def made():
    """What makes a replica of references as users give them; all are closed at the end."""
    replicas = []

    def make(registry, references, **changed):
        first = make_replica(registry, references)
        first.close()
        replicas.append(Replica(dataclasses.replace(first._plan, **changed)))
        asyncio.run(replicas[-1]._model_manager.serve_only(references))
        return replicas[-1]

    yield make
    for one in replicas:
        one.close()


def follow(replica):
    asyncio.run(replica._model_manager.follow())


def answered_by(client, name):
    return client.post("/v1/completions", json={**TEXT, "model": name}).json()["model"]


def served(client):
    return [entry["id"] for entry in client.get("/v1/models").json()["data"]]


def test_a_moved_champion_answers_once_it_has_been_checked(growing, made, monkeypatch):
    registry, more = growing
    registry.promote(registry.resolve("wit@1"))
    more("dry", 3)
    registry.alias("dry@1", "stable")
    replica = made(registry, ["wit", "dry@1", "dry@stable"])
    client, checked = client_of(replica), recorded_checks(monkeypatch)
    before = text_of(client, "wit")
    more("wit", 2)
    follow(replica)
    assert answered_by(client, "wit@champion") == "wit@1" and checked == []
    registry.promote(registry.resolve("wit@2"))
    follow(replica)
    assert checked == ["wit@2"]
    assert served(client) == ["tiny", "wit@2", "wit", "wit@champion", "dry@1", "dry", "dry@stable"]
    assert {answered_by(client, name) for name in ("wit", "wit@champion", "wit@2")} == {"wit@2"}
    assert text_of(client, "wit") != before
    assert "served: tiny, wit@2" in refusal(client, "wit@1")
    registry.rollback("wit")
    follow(replica)
    assert text_of(client, "wit") == before and answered_by(client, "wit") == "wit@1"


def test_a_name_without_a_champion_is_its_newest_version(growing, made):
    registry, more = growing
    replica = made(registry, ["wit"])
    more("wit", 2)
    follow(replica)
    assert answered_by(client_of(replica), "wit") == "wit@2"


def test_a_number_stays_what_it_is_and_its_aliases_are_those_of_now(growing, made):
    registry, more = growing
    registry.promote(registry.resolve("wit@1"))
    replica = made(registry, ["wit@1"])
    client = client_of(replica)
    assert answered_by(client, "wit@champion") == "wit@1"
    registry.promote(more("wit", 2))
    follow(replica)
    assert served(client) == ["tiny", "wit@1", "wit", "wit@previous"]
    refusal(client, "wit@champion")


def test_a_version_that_fails_the_check_is_refused_once_and_the_former_stays(growing, made, monkeypatch, caplog):
    registry, more = growing
    registry.alias("wit@1", "stable")
    registry.promote(registry.resolve("wit@1"))
    replica = made(registry, ["wit"])
    client = client_of(replica)
    before = text_of(client, "wit")
    bad = more("wit", 2)
    hardly_tuned(bad)
    registry.promote(bad)
    checked = recorded_checks(monkeypatch)
    for _ in range(2):
        follow(replica)
        assert served(client) == ["tiny", "wit@1", "wit", "wit@champion", "wit@previous", "wit@stable"]
    assert text_of(client, "wit@champion") == before and checked == ["wit@2"]
    assert list(replica.refused()) == ["wit@2"] and "can't be distinguished from its base" in caplog.text
    more("dry", 3)
    registry.alias("wit@1", "older")  # something else moves: what was refused isn't tried again
    follow(replica)
    assert checked == ["wit@2"] and answered_by(client, "wit@older") == "wit@1"
    registry.promote(more("wit", 4))
    follow(replica)
    assert answered_by(client, "wit") == "wit@3"


def test_the_former_version_answers_until_the_new_one_is_ready_and_ends_what_it_has_begun(growing, made, monkeypatch):
    registry, more = growing
    registry.promote(registry.resolve("wit@1"))
    replica = made(registry, ["wit"])
    may_continue, real = threading.Event(), model_manager.check_engine
    monkeypatch.setattr(model_manager, "RETIRE_SECONDS", 0.2)

    def check(*given):
        assert may_continue.wait(60)
        return real(*given)

    monkeypatch.setattr(model_manager, "check_engine", check)
    registry.promote(more("wit", 2))

    async def answer(id, prompt):
        return [delta async for delta in replica._engine.generate(id, prompt, SAMPLING)]

    async def run():
        manager = replica._model_manager
        following = asyncio.create_task(manager.follow())
        found = await manager.find("wit")
        prompt = found.tokens.prompt(TEXT["prompt"])
        assert (await answer(found.id, prompt))[-1].finish is not None and not following.done()
        begun = replica._engine.generate(found.id, prompt, dataclasses.replace(SAMPLING, max_tokens=64))
        await anext(begun)
        may_continue.set()
        await following
        assert (await manager.find("wit")).id == "wit@2"
        late = await answer(found.id, prompt)  # it was found before, and begins to decode after
        await asyncio.sleep(0.5)
        rest = [delta async for delta in begun]
        assert late[-1].finish is not None and rest[-1].finish is not None
        with pytest.raises(InputError, match="just been unloaded"):
            await answer(found.id, prompt)

    asyncio.run(run())


def test_a_tick_is_one_read_a_name(growing, made, monkeypatch):
    registry, more = growing
    registry.promote(registry.resolve("wit@1"))
    registry.promote(more("dry", 2))
    replica = made(registry, ["wit", "wit@1", "dry@champion"])
    calls, storage = [], replica._model_manager._registry._storage
    for name in ("read", "exists", "folders", "files", "digest"):
        real = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda path, name=name, real=real: calls.append((name, path)) or real(path))
    follow(replica)
    assert calls == [("read", "dry/aliases.json"), ("read", "wit/aliases.json")]


def test_while_the_registry_is_out_of_reach_what_is_served_stays_with_one_warning(growing, made, monkeypatch, caplog):
    registry, more = growing
    registry.promote(registry.resolve("wit@1"))
    one = made(registry, ["wit"], follow_seconds=0.01)
    monkeypatch.setattr(replica, "LONGEST_WAIT_SECONDS", 0.02)
    is_down, tried, real = threading.Event(), [], one._model_manager._registry.pointers

    def pointers(name):
        tried.append(name)
        if is_down.is_set():
            raise ConnectionError("no route to the store")
        return real(name)

    monkeypatch.setattr(one._model_manager._registry, "pointers", pointers)
    is_down.set()

    async def until(condition):
        while not condition():
            await asyncio.sleep(0.01)

    async def run():
        manager = one._model_manager
        following = asyncio.create_task(one._follow())
        await asyncio.wait_for(until(lambda: len(tried) > 3), 60)
        assert (await manager.find("wit")).id == "wit@1"
        registry.promote(more("wit", 2))
        is_down.clear()
        await asyncio.wait_for(until(lambda: manager.catalog.find("wit@2") is not None), 60)
        assert (await manager.find("wit")).id == "wit@2"
        following.cancel()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    warnings = [record.getMessage() for record in caplog.records if "followed" in record.getMessage()]
    assert warnings == [
        "aliases can't be followed, what is served stays: no route to the store",
        "aliases are followed again",
    ]


def test_other_names_of_the_registry_are_discovered_on_demand_and_followed(growing, made, monkeypatch):
    registry, more = growing
    monkeypatch.setattr(replica, "NAMES_SECONDS", 0.0)
    one = made(registry, ["wit"], max_on_demand=2, discover=True)
    client = client_of(one)
    registry.promote(more("dry", 2))
    more("old", 3)
    more("taste", 4, kind="reward")
    assert answered_by(client, "dry@champion") == answered_by(client, "dry") == "dry@1"
    assert answered_by(client, "old") == "old@1"
    assert served(client)[-5:] == ["dry@1", "dry", "dry@champion", "old@1", "old"]
    registry.promote(more("dry", 5))
    follow(one)
    assert answered_by(client, "dry") == "dry@2"
    assert answered_by(client, "wit") == "wit@1"
    more("new", 6)
    assert answered_by(client, "new") == "new@1"  # `old` is the least recently used one
    assert [name for name in served(client) if "@" not in name] == ["tiny", "wit", "dry", "new"]
    assert "of kind reward, which gives no answers" in refusal(client, "taste")
    for name in ("gone", "../../wit@1", "wit@9"):
        assert error(client.post("/v1/completions", json={**TEXT, "model": name}), 404, "model_not_found", "model")
    closed = client_of(made(registry, ["wit"], max_on_demand=2))
    assert "served: tiny, wit@1" in refusal(closed, "dry")


def test_a_name_on_demand_means_what_it_means_in_the_registry(growing, made, monkeypatch):
    registry, more = growing
    monkeypatch.setattr(replica, "NAMES_SECONDS", 0.0)
    more("dry", 2)
    registry.promote(more("dry", 3))
    one = made(registry, ["wit"], max_on_demand=2, discover=True)
    client = client_of(one)
    assert answered_by(client, "dry@1") == answered_by(client, "dry@v1") == answered_by(client, "dry@01") == "dry@1"
    assert served(client)[3:] == ["dry@1"]
    assert answered_by(client, "dry") == answered_by(client, "dry@champion") == "dry@2"
    assert served(client)[3:] == ["dry@1", "dry@2", "dry", "dry@champion"]
    more("new", 4)
    assert answered_by(client, "new") == "new@1" and answered_by(client, "dry") == "dry@2"
    assert served(client)[3:] == ["dry@2", "dry", "dry@champion", "new@1", "new"]
    registry.alias("dry@1", "older")
    assert answered_by(client, "dry@older") == "dry@1" and answered_by(client, "wit@v1") == "wit@1"
    follow(one)
    assert answered_by(client, "dry") == "dry@2" and len(one._model_manager._on_demand) == 3


def test_following_leaves_no_more_versions_on_demand_than_may_stay(growing, made):
    registry, more = growing
    registry.promote(more("dry", 2))
    one = made(registry, ["wit"], max_on_demand=1, discover=True)
    client = client_of(one)
    assert answered_by(client, "dry@1") == answered_by(client, "dry") == "dry@1"
    registry.promote(more("dry", 3))
    follow(one)
    assert served(client)[3:] == ["dry@2", "dry"]


def test_a_request_for_an_unknown_name_lists_the_registry_at_most_every_so_often(growing, made, monkeypatch):
    registry, _ = growing
    one = made(registry, ["wit"], max_on_demand=2, discover=True)
    listed, real = [], one._model_manager._registry.names
    monkeypatch.setattr(one._model_manager._registry, "names", lambda: listed.append(1) or real())
    client = client_of(one)
    for number in range(5):
        refusal(client, f"unknown{number}")
    assert len(listed) == 1


def test_a_failing_version_is_in_the_metrics(growing, made):
    registry, more = growing
    registry.promote(registry.resolve("wit@1"))
    one = made(registry, ["wit"])
    bad = more("wit", 2)
    hardly_tuned(bad)
    registry.promote(bad)
    asyncio.run(one.reconfigure({"versions": ["wit"]}))
    client = client_of(one)
    assert 'raytune_llm_version_refused{model="wit@2"' in client.get("/metrics").text
    assert answered_by(client, "wit") == "wit@1"
    registry.rollback("wit")
    asyncio.run(one.reconfigure({"versions": ["wit"]}))
    assert "raytune_llm_version_refused{" not in client.get("/metrics").text


def test_discovery_needs_room():
    with pytest.raises(InputError, match=r"serve\.discover=true needs serve\.max_on_demand ≥ 1"):
        serve(discover=True)
