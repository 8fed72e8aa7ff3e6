"""The HTTP app over an engine that answers what a test wrote, with real tokenizers: for formats that random weights
would never generate."""

import asyncio
from collections.abc import Sequence

from serving_world import byte_level_tokenizer
from starlette.testclient import TestClient

from raytune_llm.data.tokenizing.template import supply_template
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import InputError
from raytune_llm.serving.api.answering import Service
from raytune_llm.serving.api.app import create_app
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.lengths import Limits
from raytune_llm.serving.api.metrics import Metrics
from raytune_llm.serving.api.rate_limit import KeyLimits, RateLimiter, TokenBuckets, local_acquire
from raytune_llm.serving.engine.base import Delta, Finish, PromptForm, ServedModel, TokenLogprob, TopToken
from raytune_llm.serving.engine.token_bytes import data_of_one

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HERMES = (
    "{% if tools %}{{ '<|im_start|>system\n' + '<tools>' + (tools | tojson) + '</tools><|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% elif m.tool_calls %}{{ '<|im_start|>assistant\n' + m.content }}{% for c in m.tool_calls %}"
    "{{ '<tool_call>\n' }}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}{{ '\n</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>' }}{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{% set c = m.tool_calls[0].function %}"
    '{{ \'<|im_start|>assistant\n\n{"name": "\' + c.name + \'", "parameters": \' }}{{ c.arguments | tojson }}'
    "{{ '}<|im_end|>' }}{% else %}"
    "{{ '<|im_start|>' + ('ipython' if m.role == 'tool' else m.role) + '\n\n' + m.content + '<|im_end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)


def tokens_with(template):
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    supply_template(tokenizer)
    return Tokens(tokenizer, max_tokens=None, is_encoder_decoder=False)


class ScriptedEngine:
    """Answers each request with the next of `answers`, in pieces of a few characters; keeps what it was asked."""

    num_running = num_waiting = num_adapter_loads = 0
    scores_prompts = True

    def __init__(self, tokens, answers: Sequence[str], refuses: str | None = None) -> None:
        self._tokens, self._answers, self._refuses = tokens, list(answers), refuses
        self.asked = []

    def longest_answer(self, id):
        return None

    def adapters_in_memory(self):
        return []

    def check_health(self):
        pass

    async def generate(self, model, prompt, sampling, client=""):
        if self._refuses:
            raise InputError(self._refuses)
        self.asked.append((prompt, sampling))
        text = self._answers[(len(self.asked) - 1) % len(self._answers)]
        prompt_logprobs = ()
        if sampling.num_prompt_logprobs is not None and self.scores_prompts:
            prompt_logprobs = (None, *(self._logprob(index, sampling.num_prompt_logprobs) for index in prompt[1:]))
        if sampling.max_tokens == 0:
            yield Delta("", 0, (), Finish.length, prompt_logprobs)
            return
        ids = self._tokens.tokenizer.encode(text, add_special_tokens=False)
        pieces = [self._tokens.tokenizer.decode([index]) for index in ids]
        for place, (index, piece) in enumerate(zip(ids, pieces, strict=True)):
            await asyncio.sleep(0)
            logprobs = () if sampling.num_logprobs is None else (self._logprob(index, sampling.num_logprobs),)
            yield Delta(piece, 1, logprobs, None, prompt_logprobs if place == 0 else ())
        yield Delta("", 0, (), Finish.stop)

    def _logprob(self, index, num_top):
        token = TopToken(self._tokens.tokenizer.decode([index]), -1.0 - index / 1000, self._data(index))
        other = TopToken("?", -0.5, b"?")
        return TokenLogprob(token.text, token.logprob, (other, token)[:num_top], token.data)

    def _data(self, index):
        return data_of_one(self._tokens.tokenizer, index)


class OneModel:
    """`m` and nothing else."""

    catalog = None

    def __init__(self, served):
        self._served = served

    async def find(self, name):
        if name != "m":
            raise ApiError(404, f"the model '{name}' is not served here", code="model_not_found", param="model")
        return self._served


class World:
    """An app: `post` asks it, `engine.asked` has what reached the engine."""

    def __init__(self, *answers, template=CHATML, form=PromptForm.raw, refuses=None, **limits):
        self.tokens = tokens_with(template)
        self.served = ServedModel("m", "adapter", None, self.tokens, (2,), form)
        self.engine = ScriptedEngine(self.tokens, answers or ["fine"], refuses)
        bounds = {"max_tokens": 4096, "context_tokens": 100_000, "max_body_bytes": 10**6, **limits}
        self.service = Service(
            engine=self.engine,
            models=OneModel(self.served),
            limits=Limits(shares_context=True, request_timeout_seconds=30.0, **bounds),
            rate_limiter=RateLimiter(KeyLimits(None, None), local_acquire(TokenBuckets(KeyLimits(None, None)))),
            metrics=Metrics("r"),
            generate=self.engine.generate,
            peer_metrics=lambda: asyncio.sleep(0, []),
        )
        self.client = TestClient(create_app(self.service, key_hashes=()), raise_server_exceptions=False)

    def post(self, path, **body):
        return self.client.post(f"/v1/{path}", json={"model": "m", **body})

    def chat(self, content="hi", **body):
        messages = body.pop("messages", [{"role": "user", "content": content}])
        return self.post("chat/completions", messages=messages, **body)

    def complete(self, prompt="hi", **body):
        return self.post("completions", prompt=prompt, **body)

    def prompts(self):
        """What the engine read, as text."""
        return [self.tokens.tokenizer.decode(prompt) for prompt, _ in self.engine.asked]
