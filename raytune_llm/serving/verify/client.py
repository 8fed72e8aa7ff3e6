"""The smallest client of an endpoint, for the jobs that ask it something themselves. Others use OpenAI's."""

from __future__ import annotations

import json
import urllib.request

from raytune_llm.serving.catalog import Endpoint

TIMEOUT_SECONDS = 120.0


def complete(endpoint: Endpoint, model: str, prompt: str, *, max_tokens: int = 64) -> str:
    """The greedy completion of a text prompt. Raises urllib.error.HTTPError with OpenAI's error as its body."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    if endpoint.api_key is not None:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    request = urllib.request.Request(f"{endpoint.url}/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        return str(json.load(response)["choices"][0]["text"])
