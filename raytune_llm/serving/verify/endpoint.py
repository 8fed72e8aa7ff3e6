"""The proof of a running endpoint, asked over HTTP as its clients ask it; the reference is loaded in the calling
process."""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raytune_llm.data.records import Text
from raytune_llm.models.loading import load_tuned
from raytune_llm.serving.catalog import Endpoint
from raytune_llm.serving.engine.base import ServedModel
from raytune_llm.serving.engine.loading import read_model
from raytune_llm.serving.verify.parity import ParityError, ParityResult, ProbeResult, check_parity
from raytune_llm.serving.verify.reference import NUM_TOP, Greedy, Reference
from raytune_llm.stores.registry import Registry

TIMEOUT_SECONDS = 300.0


def check_endpoint(
    endpoint: Endpoint, registry_dir: str, probes: Sequence[Text], *, max_tokens: int = 16
) -> list[ParityResult]:
    """One proof per served version. Raises ParityError naming the version, the probe and what differed."""
    registry = Registry(registry_dir)
    base = endpoint.catalog.base
    proofs = []
    with torch.inference_mode(), tempfile.TemporaryDirectory(prefix="raytune_llm_") as cache_dir:
        for entry in endpoint.catalog.entries[1:]:
            served = read_model(entry, base, registry, Path(cache_dir))
            assert served.folder is not None
            reference = Reference(served, base.load().eval(), load_tuned(served.folder, base))
            seen = [_seen(endpoint, reference, probe, max_tokens) for probe in probes]
            proofs.append(check_parity(served.id, f" at {endpoint.url}", seen, str(reference.plain.dtype)))
    return proofs


def _seen(endpoint: Endpoint, reference: Reference, probe: Text, max_tokens: int) -> ProbeResult:
    prompt = reference.served.tokens.prompt(probe, max_new_tokens=max_tokens)
    answer = ask(endpoint, reference.served, probe, prompt, max_tokens)
    return ProbeResult(probe, answer, reference.greedy(prompt, max_tokens), reference.from_base(prompt))


def ask(endpoint: Endpoint, served: ServedModel, probe: Text, prompt: list[int], max_tokens: int) -> Greedy:
    """The endpoint's greedy answer to a probe, or to its tokens where they had to be cut.

    Raises ParityError when there is none."""
    body: dict[str, Any] = {"model": served.id, "max_tokens": max_tokens, "temperature": 0}
    if isinstance(probe, str) or prompt != served.tokens.prompt(probe):
        is_whole = isinstance(probe, str) and prompt == served.tokens.prompt(probe)
        body |= {"prompt": probe if is_whole else prompt, "logprobs": NUM_TOP}
        choice = _post(endpoint, "/completions", body)
        return Greedy(choice["text"].lstrip(), [list(top.values()) for top in choice["logprobs"]["top_logprobs"]])
    messages = [{"role": message.role, "content": message.content} for message in probe]
    body |= {"messages": messages, "logprobs": True, "top_logprobs": NUM_TOP}
    choice = _post(endpoint, "/chat/completions", body)
    tops = [[entry["logprob"] for entry in token["top_logprobs"]] for token in choice["logprobs"]["content"]]
    return Greedy(choice["message"]["content"], tops)


def _post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> Any:
    headers = {"content-type": "application/json"}
    if endpoint.api_key is not None:
        headers["authorization"] = f"Bearer {endpoint.api_key}"
    request = urllib.request.Request(endpoint.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return json.load(response)["choices"][0]
    except urllib.error.HTTPError as error:
        raise ParityError(
            f"{body['model']} at {endpoint.url} gives no answer: {error.read().decode(errors='replace')}"
        ) from error
