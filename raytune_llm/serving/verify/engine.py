"""The parity check of a version that an engine has just loaded, before its first answer to a client.

The engine decodes the probes alongside the answers in flight; the reference, PEFT over the weights in memory, is
computed in the calling thread. So loading a version delays other answers only by its share of the processor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import torch

from raytune_llm.data.records import Text
from raytune_llm.errors import InputError
from raytune_llm.serving.engine.base import Delta, Engine, Sampling, ServedModel
from raytune_llm.serving.verify.parity import ParityError, ParityResult, ProbeResult, check_parity
from raytune_llm.serving.verify.reference import NUM_TOP, GreedyAnswer, Reference

MAX_TOKENS = 8


def check_engine(engine: Engine, served: ServedModel, probes: Sequence[Text]) -> ParityResult:
    """Check a model that was added to the engine; call it from a thread that runs no event loop.

    Raises ParityError with the reason.
    """
    try:
        prompts = [served.tokens.prompt(probe, max_new_tokens=MAX_TOKENS) for probe in probes]
    except InputError as error:
        raise ParityError(
            f"parity check failed: {served.id}'s template rejects a probe of its card: {error}"
        ) from error
    with torch.inference_mode():
        reference = Reference(served, *engine.references(served))
        found, expected = engine.num_adapted_modules(served.id), reference.num_adapted_modules
        if found != expected:
            raise ParityError(
                f"parity check failed: {served.id} is applied to {found} modules here, by PEFT to {expected}"
            )
        answers = asyncio.run(_answers(engine, served, prompts))
        probed = [
            ProbeResult(probe, answer, reference.greedy(prompt, MAX_TOKENS), reference.base_difference(prompt))
            for probe, prompt, answer in zip(probes, prompts, answers, strict=True)
        ]
    return check_parity(served.id, "", probed, str(reference.base.dtype))


async def _answers(engine: Engine, served: ServedModel, prompts: Sequence[list[int]]) -> list[GreedyAnswer]:
    return await asyncio.gather(*(_answer(engine, served, prompt) for prompt in prompts))


async def _answer(engine: Engine, served: ServedModel, prompt: list[int]) -> GreedyAnswer:
    sampling = Sampling(
        max_tokens=MAX_TOKENS, temperature=0.0, top_p=1.0, seed=None, stop=(), num_logprobs=NUM_TOP, stream=False
    )
    deltas: list[Delta] = []
    try:
        async with aclosing(engine.generate(served.id, prompt, sampling)) as stream:
            deltas = [delta async for delta in stream]
    except RuntimeError as error:
        raise ParityError(f"parity check failed: {served.id} gives no answer: {error.__cause__ or error}") from error
    text = "".join(delta.text for delta in deltas).lstrip()
    tops = [[(top.text, top.logprob) for top in token.top] for delta in deltas for token in delta.logprobs]
    return GreedyAnswer(text, tops)
