"""Tuned versions behind an OpenAI-compatible endpoint.

    deploy/     the endpoint on Ray Serve: config, replicas, model loading, a coordinator for several replicas
    api/        OpenAI's HTTP API: requests, responses, errors, keys, rate limits, metrics
    verify/     parity checks: served answers against PEFT's
    engine/     decoding: continuous batching on transformers, or vLLM
    catalog.py  the served models and their names

Imports point down this list.
"""

from __future__ import annotations

from typing import Any


def application(arguments: dict[str, Any]) -> Any:
    """The Serve application that `serve deploy` builds from the args of a file that serve.config_file wrote."""
    from raytune_llm.serving.deploy import serve_yaml

    return serve_yaml.application(arguments)


def proxy_middlewares() -> Any:
    """What Ray Serve calls in each HTTP proxy before it listens (deploy/front.py)."""
    from raytune_llm.serving.deploy import front

    return front.middlewares()
