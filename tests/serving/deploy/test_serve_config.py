"""What is refused before anything is started."""

import socket

import pytest
from serving_world import ENGINE

from raytune_llm.errors import InputError
from raytune_llm.serving.api.keys import key_hash
from raytune_llm.serving.deploy.config import Serve, is_loopback
from raytune_llm.serving.deploy.endpoint import start


def serve(**changed):
    values = {
        "deploy": True,
        "host": "127.0.0.1",
        "port": 8000,
        "num_replicas": 1,
        "max_replicas": 1,
        "target_open_answers": 4,
        "upscale_delay_seconds": 30.0,
        "downscale_delay_seconds": 600.0,
        "max_concurrent_requests": 4,
        "max_tokens": 16,
        "request_timeout_seconds": 10.0,
        "max_waiting_requests": 16,
        "body_timeout_seconds": 10.0,
        "drain_seconds": 60.0,
        "max_body_bytes": 4096,
        "api_key_env": None,
        "cors_origins": (),
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "max_on_demand": 0,
        "config_file": None,
        "engine": ENGINE,
    }
    return Serve(**{**values, **changed})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 0),
        ("port", 65536),
        ("num_replicas", 0),
        ("max_concurrent_requests", 0),
        ("max_tokens", 0),
        ("request_timeout_seconds", 0),
        ("body_timeout_seconds", 0),
        ("drain_seconds", 0),
        ("max_waiting_requests", -1),
        ("upscale_delay_seconds", 0),
        ("downscale_delay_seconds", -1.0),
        ("max_body_bytes", 100),
        ("max_on_demand", -1),
        ("max_replicas", 0),
        ("target_open_answers", 0),
        ("requests_per_minute", 0),
        ("tokens_per_minute", 0),
    ],
)
def test_values_out_of_range_are_refused_by_their_key(name, value):
    with pytest.raises(ValueError, match=rf"serve\.{name}={value} is not allowed"):
        serve(**{name: value})


def test_a_busy_port_is_refused_at_once_with_the_remedy(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        message = rf"serve\.port={port} is in use on 127\.0\.0\.1; choose another by serve\.port="
        with pytest.raises(InputError, match=message):
            serve(port=port).check_port()
        with pytest.raises(InputError, match=message):
            start(serve(port=port), str(tmp_path), ["wit"])
    serve(port=port).check_port()


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(InputError, match=r"can't be listened on"):
        serve(host="192.0.2.1", api_key_env="KEYS").check_port()


def test_keys_are_required_off_loopback():
    with pytest.raises(InputError, match=r"serve\.host=0\.0\.0\.0 .* needs API keys"):
        serve(host="0.0.0.0")
    assert is_loopback("::1") and is_loopback("127.9.9.9") and is_loopback("localhost")
    assert not is_loopback("10.0.0.1") and not is_loopback("my-host")


def test_keys_come_from_the_environment(monkeypatch):
    chosen = serve(host="0.0.0.0", api_key_env="SOME_KEYS")
    monkeypatch.delenv("SOME_KEYS", raising=False)
    with pytest.raises(InputError, match=r"serve\.api_key_env=SOME_KEYS: this environment variable holds no key"):
        chosen.key_hashes()
    monkeypatch.setenv("SOME_KEYS", f" a, sha256:{key_hash('b')} ,")
    assert chosen.key_hashes() == (key_hash("a"), key_hash("b"))
    assert serve().key_hashes() == ()


def test_the_url_is_one_that_this_machine_can_reach():
    assert serve().url == "http://127.0.0.1:8000/v1"
    assert serve(host="0.0.0.0", api_key_env="K").url == "http://127.0.0.1:8000/v1"
    assert serve(host="::", api_key_env="K").url == "http://[::1]:8000/v1"


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/page", ""])
def test_origins_are_schemes_and_hosts(origin):
    assert serve(cors_origins=("https://example.org:8443", "*")).cors_origins
    with pytest.raises(InputError, match=rf"serve\.cors_origins={origin} is not allowed; allowed: .* as https://HOST"):
        serve(cors_origins=(origin,))
