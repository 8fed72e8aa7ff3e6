"""How long an answer may be: the endpoint's limits, the model's context, and the memory for its cache."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.serving.api.errors import ApiError, invalid
from raytune_llm.serving.api.requests import CompletionRequest, Options


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one request."""

    max_tokens: int
    """Longest answer, tokens."""
    context_tokens: int | None
    """Longest prompt plus answer (either of them for an encoder-decoder base); None = no bound."""
    shares_context: bool
    """Whether prompt and answer share the context, as in causal bases."""
    request_timeout_seconds: float
    """From a request's arrival at the replica to its last token, waiting included."""
    max_body_bytes: int
    body_timeout_seconds: float = 30.0
    """From a request's arrival to the last byte of its body."""
    max_open_requests: int = 80
    """Answers, decoded or waiting, that one replica holds at once; admission.py says how they are counted."""

    def answer_tokens(self, request: Options, prompt_tokens: int, longest: int | None) -> int:
        """Longest answer to a prompt of so many tokens.

        `longest`: tokens of prompt and answer that memory has room for; None = no bound.

        Raises ApiError when prompt and answer exceed the limits.
        """
        limit, wanted = self._limited_tokens(request, prompt_tokens), request.answer_tokens
        if longest is None or prompt_tokens + limit <= longest:
            return limit
        least = 1 if wanted is None else wanted
        if prompt_tokens + least > longest:
            raise _too_long(
                request,
                f"the prompt's {prompt_tokens} tokens and max_tokens={least} are more than the {longest} tokens that "
                "this endpoint's memory has room for (serve.engine.cache_bytes); shorten the prompt or lower "
                "max_tokens",
            )
        return longest - prompt_tokens

    def _limited_tokens(self, request: Options, prompt_tokens: int) -> int:
        """Longest answer by the endpoint's and the model's own limits."""
        limit, context, wanted = self.max_tokens, self.context_tokens, request.answer_tokens
        if wanted is not None and wanted > limit:
            raise invalid(f"max_tokens={wanted} is more than this endpoint's limit of {limit}", param="max_tokens")
        most = limit if wanted is None else wanted
        if context is None:
            return most
        used = prompt_tokens if self.shares_context else 0
        if prompt_tokens > context or used + (1 if wanted is None else wanted) > context:
            raise _too_long(
                request,
                f"this model's context is {context} tokens; the prompt has {prompt_tokens}"
                + (f" and max_tokens is {wanted}" if wanted is not None else "")
                + "; shorten the prompt"
                + (" or lower max_tokens" if wanted is not None else ""),
            )
        return min(most, context - used)


def _too_long(request: Options, message: str) -> ApiError:
    param = "prompt" if isinstance(request, CompletionRequest) else "messages"
    return invalid(message, param=param, code="context_length_exceeded")
