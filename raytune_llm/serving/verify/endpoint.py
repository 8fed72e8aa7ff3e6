"""The parity check of a running endpoint, over HTTP like its clients; the reference is loaded in this process."""

from __future__ import annotations

import tempfile
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raytune_llm.data.records import Message, Text
from raytune_llm.models.loading import load_tuned
from raytune_llm.serving.catalog import Endpoint
from raytune_llm.serving.engine.base import ServedModel
from raytune_llm.serving.engine.loading import read_model
from raytune_llm.serving.engine.prompts import of_chat
from raytune_llm.serving.verify.client import post
from raytune_llm.serving.verify.parity import ParityError, ParityResult, ProbeResult, check_parity
from raytune_llm.serving.verify.reference import NUM_TOP, GreedyAnswer, Reference
from raytune_llm.stores.registry import Registry


def check_endpoint(
    endpoint: Endpoint, registry_dir: str, probes: Sequence[Text], *, max_tokens: int = 16
) -> list[ParityResult]:
    """One result per served version. Raises ParityError naming the version, the probe and the difference."""
    registry = Registry(registry_dir)
    base = endpoint.catalog.base.resolved("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    with torch.inference_mode(), tempfile.TemporaryDirectory(prefix="raytune_llm_") as cache_dir:
        for entry in endpoint.catalog.entries[1:]:
            served = read_model(entry, base, registry, Path(cache_dir))
            assert served.folder is not None
            reference = Reference(served, base.load().eval(), load_tuned(served.folder, base))
            probed = [_probe(endpoint, reference, probe, max_tokens) for probe in probes]
            results.append(check_parity(served.id, f" at {endpoint.url}", probed, str(reference.base.dtype)))
    return results


def _probe(endpoint: Endpoint, reference: Reference, probe: Text, max_tokens: int) -> ProbeResult:
    prompt = reference.served.tokens.prompt(probe, max_new_tokens=max_tokens)
    served = served_answer(endpoint, reference.served, probe, prompt, max_tokens)
    return ProbeResult(probe, served, reference.greedy(prompt, max_tokens), reference.base_difference(prompt))


def served_answer(
    endpoint: Endpoint, served: ServedModel, probe: Text, prompt: list[int], max_tokens: int
) -> GreedyAnswer:
    """The endpoint's greedy answer to a conversation; to the tokens of a text, which engines render in different forms,
    and of a conversation that had to be truncated, has tools, or isn't what the version was tuned with.

    Raises ParityError when there is none.
    """
    body: dict[str, Any] = {"model": served.id, "max_tokens": max_tokens, "temperature": 0}
    if isinstance(probe, str) or has_tools(probe) or prompt != of_chat(served, probe).ids:
        body |= {"prompt": prompt, "logprobs": NUM_TOP}
        choice = _post(endpoint, "/completions", body)
        tops = [[(_text(name), value) for name, value in top.items()] for top in choice["logprobs"]["top_logprobs"]]
        return GreedyAnswer(choice["text"].lstrip(), tops)
    messages = [{"role": message.role, "content": message.content} for message in probe]
    body |= {"messages": messages, "logprobs": True, "top_logprobs": NUM_TOP}
    choice = _post(endpoint, "/chat/completions", body)
    tokens = choice["logprobs"]["content"]
    tops = [[(entry["token"], entry["logprob"]) for entry in token["top_logprobs"]] for token in tokens]
    return GreedyAnswer(choice["message"]["content"], tops)


def _text(name: str) -> str:
    """A token's text as the reference names it, also where the endpoint names a part of a character by its bytes."""
    if not name.startswith("bytes:"):
        return name
    return bytes(int(digits, 16) for digits in name.removeprefix("bytes:").split("\\x")[1:]).decode(errors="replace")


def has_tools(turns: Sequence[Message]) -> bool:
    """Whether a conversation offers tools, calls them or has their results."""
    return any(turn.role == "tool" or turn.tools is not None or turn.tool_calls is not None for turn in turns)


def _post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> Any:
    try:
        return post(endpoint, path, body)
    except urllib.error.HTTPError as error:
        raise ParityError(
            f"parity check failed: {body['model']} at {endpoint.url} gives no answer: "
            f"{error.read().decode(errors='replace')}"
        ) from error
