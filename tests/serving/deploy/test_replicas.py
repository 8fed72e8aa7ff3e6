"""Two replicas as one endpoint: budgets, metrics and adapters are shared; they come with load and go without loss."""

import concurrent.futures
import dataclasses
import itertools
import re
import sys
import threading
import time
import urllib.request

import openai
import pytest
from serving_world import make_base, publish, write_adapter
from test_failures import expected, free_port
from test_serve_config import serve

from raytune_llm.serving.deploy import endpoint as deployment
from raytune_llm.serving.deploy.application import APPLICATION, DEPLOYMENT
from raytune_llm.serving.deploy.peers import HEARTBEAT_SECONDS
from raytune_llm.serving.engine.decoder import LocalDecoder
from raytune_llm.serving.engine.local import LocalEngine
from raytune_llm.stores.registry import Registry

PROMPT = "Miss the bus"
KEYS = [f"key-{i}" for i in range(40)]
PER_MINUTE = 40
MODELS = [f"a{i}@1" for i in range(4)]
CONVERGED_WITHIN_SECONDS = 120


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny")
    registry = Registry(str(root / "registry"))
    for seed in range(4):
        publish(registry, base, f"a{seed}", write_adapter(base, root / f"a{seed}", seed=seed))
    return registry


def chosen(**changed):
    engine = dataclasses.replace(serve().engine, cpus_per_replica=0.5, max_resident_adapters=2)
    values = {"max_tokens": 100, "request_timeout_seconds": 60.0, "engine": engine, "port": free_port(), **changed}
    return serve(**values)


@pytest.fixture(scope="module")
def endpoint(ray_session, registry):
    """Two replicas, each with room for two of four adapters."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SOME_KEYS", ",".join(KEYS))
    pair = chosen(num_replicas=2, max_replicas=2, api_key_env="SOME_KEYS", requests_per_minute=PER_MINUTE)
    yield deployment.start(pair, registry.root, MODELS)
    deployment.stop()
    patch.undo()


def client(endpoint, key):
    return openai.OpenAI(base_url=endpoint.url, api_key=key, max_retries=0, timeout=60)


def ask(client, model, max_tokens=8):
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=max_tokens, temperature=0)
    return answer.choices[0].text.lstrip()


def samples(endpoint):
    """(name, labels) → value, over all replicas."""
    request = urllib.request.Request(
        endpoint.url.removesuffix("/v1") + "/metrics", headers={"authorization": f"Bearer {endpoint.api_key}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        text = response.read().decode()
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (.*)", line).groups()
            key = (name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels or "")))
            assert key not in found, line
            found[key] = float(value)
    return found


def by(found, name, label):
    """Sums of one metric by a label."""
    sums = {}
    for (each, labels), value in found.items():
        if each == name:
            at = dict(labels)[label]
            sums[at] = sums.get(at, 0.0) + value
    return sums


def holders(endpoint):
    """Replicas that have each adapter in memory."""
    found = {}
    for name, labels in samples(endpoint):
        if name == "raytune_llm_adapter_in_memory":
            found.setdefault(dict(labels)["model"], set()).add(dict(labels)["replica"])
    return found


def until(condition):
    deadline = time.monotonic() + CONVERGED_WITHIN_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_keys_limit_holds_over_all_replicas_and_a_scrape_tells_of_all(endpoint):
    until(lambda: len(by(samples(endpoint), "raytune_llm_answers_open", "replica")) == 2)
    before = by(samples(endpoint), "raytune_llm_requests_total", "replica")
    limited = client(endpoint, KEYS[0])

    def is_admitted(i):
        try:
            ask(limited, MODELS[i % 4], max_tokens=2)
        except openai.RateLimitError as error:
            assert 0 < int(error.response.headers["retry-after"]) <= 60
            return False
        return True

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        num_admitted = sum(pool.map(is_admitted, range(3 * PER_MINUTE)))
    come_back = (time.monotonic() - begun) * PER_MINUTE / 60
    # a replica may hold a tenth of a minute's worth that the others ask for in vain
    assert PER_MINUTE * 0.9 - 1 <= num_admitted <= PER_MINUTE + come_back
    assert ask(client(endpoint, KEYS[1]), MODELS[0])
    found = samples(endpoint)
    after = by(found, "raytune_llm_requests_total", "replica")
    assert len(after) == 2 and sum(after.values()) - sum(before.values()) == num_admitted + 1
    assert all(count > before.get(replica, 0) for replica, count in after.items())
    assert by(found, "raytune_llm_refused_total", "status")["429"] == 3 * PER_MINUTE - num_admitted


def test_replicas_divide_the_adapters_and_a_hot_one_is_held_by_both(endpoint, registry, tmp_path):
    answers, keys = expected(endpoint, registry, 100, tmp_path), itertools.cycle(KEYS[2:])

    def are_divided():
        for model in MODELS:
            ask(client(endpoint, next(keys)), model, max_tokens=1)
        found = holders(endpoint)
        return set(found) == set(MODELS) and all(len(replicas) == 1 for replicas in found.values())

    def stay_divided():
        until(are_divided)
        time.sleep(4 * HEARTBEAT_SECONDS)  # both know who holds what
        loads = sum(by(samples(endpoint), "raytune_llm_adapter_loads", "replica").values())
        for model in MODELS * 3:
            assert ask(client(endpoint, next(keys)), model, 100) == answers[model]
        return sum(by(samples(endpoint), "raytune_llm_adapter_loads", "replica").values()) == loads

    until(stay_divided)
    assert sum(by(samples(endpoint), "raytune_llm_handed_over_total", "model").values()) > 0
    leaver = client(endpoint, KEYS[1])
    for model in MODELS * 2:
        stream = leaver.completions.create(model=model, prompt=PROMPT, max_tokens=100, temperature=0, stream=True)
        next(iter(stream))
        stream.close()
    until(lambda: not any(by(samples(endpoint), "raytune_llm_answers_open", "replica").values()))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda i: ask(client(endpoint, KEYS[2 + i]), MODELS[0], 100), range(32)))
    assert set(texts) == {answers[MODELS[0]]}
    assert len(holders(endpoint)[MODELS[0]]) == 2


class SlowDecoder(LocalDecoder):
    """As on a large base: a step takes a while."""

    def _step(self, batch):
        time.sleep(0.04 if len(batch) else 0)
        super()._step(batch)


class SlowEngine(LocalEngine):
    def load(self, base, *, max_running):
        quick = super().load(base, max_running=max_running)
        quick.close()
        return SlowDecoder(quick._resident, max_running=max_running)


def num_replicas():
    from ray import serve as ray_serve

    return ray_serve.status().applications[APPLICATION].deployments[DEPLOYMENT].replica_states.get("RUNNING")


@pytest.mark.slow
def test_load_adds_a_replica_and_quiet_takes_one_away_whose_answers_are_finished(ray_session, registry, tmp_path):
    """A minute: replicas are started and taken away by measured load."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    few = SlowEngine(**{**vars(serve().engine), "cpus_per_replica": 0.5})
    scaled = chosen(
        max_replicas=2, target_open_answers=2, upscale_delay_seconds=2.0, downscale_delay_seconds=2.0, engine=few
    )
    endpoint = deployment.start(scaled, registry.root, MODELS)
    answers = expected(endpoint, registry, 100, tmp_path)
    asker = client(endpoint, "none")
    assert num_replicas() == 1
    is_busy = threading.Event()
    is_busy.set()

    def keep_asking(i):
        texts = []
        while is_busy.is_set():
            texts.append(ask(asker, MODELS[i % 4], 100) == answers[MODELS[i % 4]])
        return texts

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        busy = [pool.submit(keep_asking, i) for i in range(8)]
        until(lambda: num_replicas() == 2)
        until(lambda: len(by(samples(endpoint), "raytune_llm_requests_total", "replica")) == 2)
        is_busy.clear()
        assert all(all(future.result()) for future in busy)
        is_busy.set()
        calm = [pool.submit(keep_asking, i) for i in range(2)]  # open at all times, and few enough for one replica
        until(lambda: num_replicas() == 1)
        is_busy.clear()
        assert all(all(future.result()) for future in calm)
    deployment.stop()
