"""The smallest client of an endpoint, for the jobs themselves; other clients use OpenAI's."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from raytune_llm.serving.catalog import Endpoint

TIMEOUT_SECONDS = 300.0


def post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> Any:
    """The first choice of the answer to a request. Raises urllib.error.HTTPError with OpenAI's error as its body."""
    headers = {"content-type": "application/json"}
    if endpoint.api_key is not None:
        headers["authorization"] = f"Bearer {endpoint.api_key}"
    request = urllib.request.Request(endpoint.url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        return json.load(response)["choices"][0]


def complete(endpoint: Endpoint, model: str, prompt: str, *, max_tokens: int = 64) -> str:
    """The greedy answer to the prompt of a plain pair, the base's too. Raises urllib.error.HTTPError as `post` does."""
    body = {"model": model, "prompt": prompt, "prompt_form": "pair", "max_tokens": max_tokens, "temperature": 0}
    return str(post(endpoint, "/completions", body)["text"])
