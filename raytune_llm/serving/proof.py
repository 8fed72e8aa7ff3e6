"""Nothing is deployed unproven: does the endpoint answer as PEFT does, and not as the base?

For each served version and probe prompt: the greedy answer equals `generate` of the version loaded by itself, the
first token's log-probabilities agree, and at least one probe tells the version from its base. The reference is
loaded in the calling process, in the base's dtype. In bfloat16 near-ties may fall either way, so answers are
compared by their first token's log-probabilities alone. Left out: later positions' log-probabilities.
"""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytune_llm.data.records import Text
from raytune_llm.models.adapter import load_tuned
from raytune_llm.registry import Registry
from raytune_llm.serving.catalogue import Endpoint
from raytune_llm.serving.engine import ServedModel
from raytune_llm.serving.text import decode

NUM_TOP = 5
TOLERANCE_NATS = {"torch.float64": 1e-4, "torch.float32": 1e-4, "torch.bfloat16": 0.1, "torch.float16": 0.02}
"""Largest difference between two honest computations of one log-probability, by dtype."""
TIMEOUT_SECONDS = 300.0


class NotProven(RuntimeError):
    """The endpoint does not answer as the tuned version does."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was seen of one version."""

    model: str
    num_probes: int
    from_reference: float
    """Largest difference of served and reference log-probabilities, nats."""
    from_base: float
    """Largest difference of the version's and the base's, nats."""


@dataclass(frozen=True)
class Greedy:
    """A greedy answer, without white space before it, and what may be told of its first token."""

    text: str
    top: list[float]
    """log p of the likeliest first tokens, nats; empty where the answer is, fewer where tokens look alike."""


def prove(endpoint: Endpoint, registry_dir: str, probes: Sequence[Text], *, max_tokens: int = 16) -> list[Proof]:
    """One proof per served version. Raises NotProven naming the version, the probe and what differed."""
    import torch

    from raytune_llm.serving.replica import read_model

    if not probes:
        raise ValueError("nothing can be proven without a probe; give a few prompts")
    registry = Registry(registry_dir)
    base = endpoint.catalogue.base
    proofs = []
    with torch.inference_mode(), tempfile.TemporaryDirectory(prefix="raytune_llm_") as cache_dir:
        for entry in endpoint.catalogue.entries[1:]:
            served = read_model(entry, base, registry, Path(cache_dir))
            assert served.folder is not None
            plain, tuned = base.load().eval(), load_tuned(served.folder, base)
            proofs.append(_prove_one(endpoint, served, plain, tuned, probes, max_tokens))
    return proofs


def _prove_one(
    endpoint: Endpoint, served: ServedModel, plain: Any, tuned: Any, probes: Sequence[Text], max_tokens: int
) -> Proof:
    model = served.id
    tolerance = TOLERANCE_NATS[str(plain.dtype)]
    is_exact = tolerance <= 1e-3
    from_reference = from_base = 0.0
    for probe in probes:
        prompt = served.tokens.prompt(probe, max_new_tokens=max_tokens)
        answer = ask(endpoint, served, probe, prompt, max_tokens)
        first, first_plain = first_logprobs(tuned, prompt), first_logprobs(plain, prompt)
        top = first.topk(NUM_TOP)
        from_base = max(from_base, float((top.values - first_plain[top.indices]).abs().max()))
        if answer.top:
            off = max(min(abs(told - true) for true in top.values.tolist()) for told in answer.top)
            from_reference = max(from_reference, off)
            if off > tolerance:
                raise NotProven(
                    f"{model} at {endpoint.url} is not what was tuned: after {_short(probe)} its log-probabilities are "
                    f"{off:.2g} nats off PEFT's (allowed: {tolerance:g})"
                )
        expected = reference_answer(tuned, served, prompt, max_tokens)
        if is_exact and answer.text != expected:
            raise NotProven(
                f"{model} at {endpoint.url} answers {answer.text!r} to {_short(probe)}; "
                f"the reference, PEFT's generate, {expected!r}"
            )
    if from_base <= 2 * tolerance:
        raise NotProven(
            f"{model} can't be told from its base: over {len(probes)} probes its log-probabilities differ by "
            f"{from_base:.2g} nats at most; it was hardly tuned, or its adapter is not applied"
        )
    return Proof(model=model, num_probes=len(probes), from_reference=from_reference, from_base=from_base)


def first_logprobs(model: Any, prompt: list[int]) -> Any:
    """log p of the first answer token, nats, (V,)."""
    import torch

    inputs: dict[str, Any] = {"input_ids": torch.tensor([prompt])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id]])
    return model(**inputs).logits[0, -1].float().log_softmax(-1)


def reference_answer(model: Any, served: ServedModel, prompt: list[int], max_tokens: int) -> str:
    """transformers' own greedy answer, without white space before it."""
    import torch

    tokenizer: Any = served.tokens.tokenizer
    inputs = torch.tensor([prompt])
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_tokens,
        eos_token_id=list(served.stop_ids),
        pad_token_id=tokenizer.pad_token_id,
    )[0].tolist()
    answer = output[1:] if model.config.is_encoder_decoder else output[len(prompt) :]
    if answer and answer[-1] in served.stop_ids:
        answer.pop()
    return decode(tokenizer, answer).lstrip()


def ask(endpoint: Endpoint, served: ServedModel, probe: Text, prompt: list[int], max_tokens: int) -> Greedy:
    """The endpoint's greedy answer to a probe, or to its tokens where they had to be cut. Raises NotProven for none."""
    body: dict[str, Any] = {"model": served.id, "max_tokens": max_tokens, "temperature": 0}
    if isinstance(probe, str) or prompt != served.tokens.prompt(probe):
        is_whole = isinstance(probe, str) and prompt == served.tokens.prompt(probe)
        body |= {"prompt": probe if is_whole else prompt, "logprobs": NUM_TOP}
        choice = _post(endpoint, "/completions", body)
        tops = choice["logprobs"]["top_logprobs"]
        return Greedy(choice["text"].lstrip(), list(tops[0].values()) if tops else [])
    messages = [{"role": message.role, "content": message.content} for message in probe]
    body |= {"messages": messages, "logprobs": True, "top_logprobs": NUM_TOP}
    choice = _post(endpoint, "/chat/completions", body)
    content = choice["logprobs"]["content"]
    top = [entry["logprob"] for entry in content[0]["top_logprobs"]] if content else []
    return Greedy(choice["message"]["content"], top)


def _post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> Any:
    headers = {"content-type": "application/json"}
    if endpoint.api_key is not None:
        headers["authorization"] = f"Bearer {endpoint.api_key}"
    request = urllib.request.Request(endpoint.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return json.load(response)["choices"][0]
    except urllib.error.HTTPError as error:
        raise NotProven(
            f"{body['model']} at {endpoint.url} gives no answer: {error.read().decode(errors='replace')}"
        ) from error


def _short(probe: Text) -> str:
    text = probe if isinstance(probe, str) else probe[-1].content
    return repr(text if len(text) <= 60 else text[:57] + "…")
