"""Answers that can't share a forward pass with others: encoder-decoder bases, DoRA adapters, and further exceptions.

PEFT applies the adapters. The active one is switched here, because PEFT's `set_adapter` also walks every parameter's
requires_grad: 2.9 ms on a base whose decoding step takes 2.1 ms.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raytune_llm.compat import switch_adapter
from raytune_llm.errors import InputError
from raytune_llm.models.forward import decoder_start
from raytune_llm.models.loading import num_adapted_modules
from raytune_llm.serving.engine.prompt_logprobs import MOST_LOGITS, PromptLogprobs
from raytune_llm.serving.engine.request import GenerationRequest
from raytune_llm.serving.engine.sampling import LogitsProcessors, Sampler, SamplingState

if TYPE_CHECKING:
    from peft import PeftModel


class AdapterSwitcher:
    """A model with several of PEFT's adapters, at most one of them active at a time."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._peft: PeftModel | None = None
        self._layers: list[Any] = []
        self._names: dict[str, str] = {}
        self._num_loaded = 0

    def __contains__(self, id: str) -> bool:
        return id in self._names

    def load(self, id: str, folder: Path, config: Any) -> None:
        """Raises InputError, with nothing changed, when the adapter doesn't fit."""
        from peft import PeftModel

        config.inference_mode = True
        self._num_loaded += 1
        name = f"adapter_{self._num_loaded}"  # a version's name may hold dots, a module's may not
        try:
            if self._peft is None:
                self._peft = PeftModel(self.model, config, adapter_name=name)
            result = self._peft.load_adapter(str(folder), adapter_name=name, torch_device=str(self.model.device))
        except (RuntimeError, ValueError) as error:
            self._delete(name)
            raise InputError(f"{id} doesn't fit its base: {str(error).strip().splitlines()[-1].strip()}") from error
        if result.missing_keys or result.unexpected_keys:
            self._delete(name)
            wrong = [
                f"{len(keys)} {what} (e.g. {keys[0]})"
                for keys, what in ((result.missing_keys, "missing"), (result.unexpected_keys, "unexpected"))
                if keys
            ]
            raise InputError(
                f"{id} doesn't fit its base: weights {' and '.join(wrong)}; was it tuned from another base?"
            )
        self._names[id] = name
        self._find_layers()

    def num_adapted_modules(self, id: str) -> int:
        """Modules in which PEFT put this adapter."""
        return num_adapted_modules(self.model, self._names[id])

    def unload(self, id: str) -> None:
        self._delete(self._names.pop(id))

    def use(self, id: str | None) -> Any:
        """The model with this adapter active, none of them for None, until the next call."""
        name = None if id is None else self._names[id]
        switch_adapter(self._layers, name)
        return self.model

    def _delete(self, name: str) -> None:
        if self._peft is not None and name in self._peft.peft_config:
            self._peft.delete_adapter(name)
            self._find_layers()

    def _find_layers(self) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        assert self._peft is not None
        self._peft.eval()
        self._layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]


class Unbatched:
    """An answer with its own key-value cache; one token a step."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self._sampler: Sampler | None = None
        self._sampling: SamplingState | None = None
        self._processors: LogitsProcessors | None = None
        self._state: dict[str, Any] = {}
        self._last = -1

    def step(self, model: Any) -> bool:
        """Decode one token with the model, its adapter already active; returns whether the answer needs more."""
        logits = self._first_logits(model) if self._sampler is None else self._next_logits(model)
        assert self._sampler is not None and self._sampling is not None and self._processors is not None
        logits = logits if logits.dtype == torch.float64 else logits.float()
        tokens = self._sampler(logits if self._processors.is_empty else self._processors(logits))
        token = int(tokens)
        if token < 0:
            raise self._sampling.error or RuntimeError("the logits are not finite")
        if not self._processors.is_empty:
            self._processors.add(token)
        self._sampling.add(token)
        self._last = token
        return self.request.add_token(token, self._sampler.logprobs(logits, tokens, [self.request.tokenizer])[0])

    def _first_logits(self, model: Any) -> Tensor:
        """(1, V) after the prompt, which fills the cache."""
        prompt = torch.tensor([self.request.prompt], device=model.device)
        sampling, stop_ids = self.request.sampling, self.request.served.stop_ids
        start = decoder_start(model) if model.config.is_encoder_decoder else -1
        read = [start] if model.config.is_encoder_decoder else self.request.prompt
        self._sampling = SamplingState(sampling, read, self.request.grammar)
        self._sampler = Sampler([self._sampling], model.device)
        if model.config.is_encoder_decoder:
            if sampling.num_prompt_logprobs is not None:
                raise InputError(
                    f"{self.request.served.id}: an encoder-decoder base has no probabilities of its prompts"
                )
            self._processors = LogitsProcessors(model, sampling, stop_ids, [start], prompt)
            self._state["encoder_outputs"] = model.get_encoder()(input_ids=prompt, return_dict=True)
            self._last = start
            return self._next_logits(model)
        self._processors = LogitsProcessors(model, sampling, stop_ids, self.request.prompt, None)
        if sampling.num_prompt_logprobs is None:
            return self._forward(model, input_ids=prompt, logits_to_keep=1)[:, -1]
        take = PromptLogprobs(self.request)
        for start in range(0, prompt.shape[1], MOST_LOGITS):
            logits = self._forward(model, input_ids=prompt[:, start : start + MOST_LOGITS])
            take(start, logits[0])
        return logits[:, -1]

    def _next_logits(self, model: Any) -> Tensor:
        """(1, V) after the last token."""
        name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
        return self._forward(model, **{name: torch.tensor([[self._last]], device=model.device)})[:, -1]

    def _forward(self, model: Any, **inputs: Any) -> Tensor:
        """(1, T, V)."""
        output = model(**inputs, **self._state, use_cache=True, return_dict=True)
        self._state["past_key_values"] = output.past_key_values
        logits: Tensor = output.logits
        return logits
