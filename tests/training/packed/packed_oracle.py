"""What a trial is alone, by other people's code: PEFT's layers, torch's AdamW, clip_grad_norm_ and transformers'
schedules.

Tiny random bases of several architectures, random examples, and `solo`, which trains one adapter on one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    T5Config,
    T5GemmaConfig,
    get_scheduler,
)

from raytune_llm.data.examples import IGNORED, Example, TokenSequence
from raytune_llm.data.mixture import epoch_indices
from raytune_llm.data.order import first_indices
from raytune_llm.evaluation.terms import Term
from raytune_llm.models.base import auto_class, linear_targets
from raytune_llm.models.outputs import Outputs
from raytune_llm.training.config import Schedule
from raytune_llm.training.packed.batches import PassBudget, TokenTable
from raytune_llm.training.packed.hyperparameters import Hyperparameters
from raytune_llm.training.packed.pack import Pack

VOCABULARY = 50
BUDGET = PassBudget(slots_per_pass=64, max_tokens=1 << 20, overhead_tokens=64)
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_COMMON = _SIZES | {"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_HALF = _COMMON | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 10, "final_logit_softcapping": 2.0}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [1.0, 3.0, 9.0],
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_COMMON, num_key_value_heads=2),
    "qwen2": lambda: Qwen2Config(**_COMMON, num_key_value_heads=2, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_COMMON, num_key_value_heads=2, sliding_window=10),
    "gemma2": lambda: Gemma2Config(
        **_COMMON, num_key_value_heads=2, head_dim=8, sliding_window=10, final_logit_softcapping=2.0
    ),
    "gemma3": lambda: Gemma3TextConfig(**_COMMON, num_key_value_heads=2, head_dim=8, sliding_window=10),
    "qwen3": lambda: Qwen3Config(**_COMMON, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True),
    "smollm3": lambda: SmolLM3Config(**_COMMON, num_key_value_heads=2, no_rope_layer_interval=2),
    "phi3": lambda: Phi3Config(
        **_COMMON,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        original_max_position_embeddings=32,
        rope_parameters=_LONGROPE,
    ),
    "t5gemma": lambda: T5GemmaConfig(encoder=dict(_HALF), decoder=dict(_HALF), vocab_size=VOCABULARY),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON, hidden_dropout=0.0, attention_dropout=0.0),
    "t5": lambda: T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        tie_word_embeddings=True,
        feed_forward_proj="gated-gelu",
    ),
}


def make_model(kind: str = "llama", dtype: torch.dtype = torch.float64, *, score: bool = False) -> PreTrainedModel:
    """The same random weights on every call."""
    torch.manual_seed(1)
    config = CONFIGS[kind]()
    config.num_labels = 1
    model = auto_class(config.is_encoder_decoder, score=score).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # so that logits are neither nearly uniform nor chaotic
            parameter.mul_(0.5 if kind == "t5" else 2.0)
    return model.to(dtype).eval()


def make_examples(
    count: int, *, seed: int = 0, is_encoder_decoder: bool = False, names: Sequence[str] = ("completion",)
) -> list[Example]:
    """Sequences of 8 to 16 tokens, a prompt without loss, uneven numbers of labels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def tokens() -> TokenSequence:
        length = draw(8, 17)
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        if is_encoder_decoder:
            return TokenSequence(ids, torch.randint(3, VOCABULARY, (draw(2, 9),), generator=generator).tolist())
        prompt = draw(1, length)
        return TokenSequence(ids, [IGNORED] * prompt + ids[prompt:])

    return [{name: tokens() for name in names} for _ in range(count)]


def sft_terms(outputs: dict[str, Outputs]) -> dict[str, Term]:
    completion = outputs["completion"]
    weight = completion.mask.sum(-1)
    return {
        "loss": Term(-(completion.logprobs * completion.mask).sum(-1), weight),
        "token_accuracy": Term(completion.correct.sum(-1), weight, coefficient=0.0),
    }


@dataclass(frozen=True)
class TwoTerms:
    """Two sequences, two denominators (tokens of the one, examples of the other), a coefficient that can be swept."""

    alpha: float

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        label, reason = outputs["label"], outputs["reason"]
        margin = label.logprobs.sum(-1) - reason.logprobs.sum(-1)
        return {
            "label_loss": Term(-label.logprobs.sum(-1), label.mask.sum(-1), self.alpha),
            "margin": Term(-torch.nn.functional.logsigmoid(margin), torch.ones_like(margin), 1 - self.alpha),
        }


def make_spec(trial_id: str, **changes: object) -> Hyperparameters:
    settings = {
        "lora_rank": 4,
        "alpha": 16.0,
        "rslora": False,
        "dropout": 0.0,
        "learning_rate": 1e-2,
        "schedule": Schedule.constant,
        "warmup_steps": 0,
        "num_steps": None,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "batch_size": 3,
        "micro_batch_size": None,
        "seed": 1,
    }
    return Hyperparameters(trial_id=trial_id, **(settings | changes))


def make_pack(model: PreTrainedModel, capacity: int = 8, max_lora_rank: int = 16, budget: PassBudget = BUDGET) -> Pack:
    return Pack(model, linear_targets(model), capacity=capacity, max_lora_rank=max_lora_rank, budget=budget)


def lora_config(
    spec: Hyperparameters, names: Sequence[str], is_encoder_decoder: bool, score: bool = False
) -> LoraConfig:
    kind = "SEQ_2_SEQ_LM" if is_encoder_decoder else "CAUSAL_LM"
    return LoraConfig(
        task_type="SEQ_CLS" if score else kind,
        r=spec.lora_rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in names}),
        use_rslora=spec.rslora,
    )


@dataclass(frozen=True)
class Solo:
    """weights: module → (A, B); head: a score head's; one entry a step in losses and grad_norms."""

    weights: dict[str, tuple[Tensor, Tensor]]
    head: Tensor | None
    losses: list[float]
    grad_norms: list[float]


def solo(
    model: PreTrainedModel,
    spec: Hyperparameters,
    examples: Sequence[Example],
    steps: int,
    terms: Callable[[dict[str, Outputs]], dict[str, Term]] = sft_terms,
    sources: np.ndarray | None = None,
) -> Solo:
    """Train one adapter on the model, which is used up; LoRA dropout is drawn by nn.Dropout under torch.manual_seed."""
    names = linear_targets(model)
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    torch.manual_seed(spec.seed)
    config = lora_config(spec, names, is_encoder_decoder, score=is_scorer(model))
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False).train()
    if model.dtype == torch.bfloat16:
        for parameter in adapted.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay
    )
    kind = "constant_with_warmup" if spec.schedule is Schedule.constant else spec.schedule.value
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=spec.warmup_steps, num_training_steps=spec.num_steps)
    data = {"subset": spec.subset, "weights": spec.weights, "sources": sources}
    order = first_indices(epoch_indices(len(examples), seed=spec.seed, **data), spec.seed, steps * spec.batch_size)
    losses, grad_norms = [], []
    torch.manual_seed(spec.seed)
    micro = spec.micro_batch_size or spec.batch_size
    for step in range(steps):
        batch = [examples[i] for i in order[step * spec.batch_size : (step + 1) * spec.batch_size]]
        parts = [batch[start : start + micro] for start in range(0, len(batch), micro)]
        with torch.no_grad():
            whole = terms({name: _mask_only(batch, name, is_encoder_decoder) for name in batch[0]})
            totals = {name: term.weight.sum() for name, term in whole.items()}
        loss_of_step = 0.0
        for part in parts:
            found = terms({name: plain_outputs(adapted, [example[name] for example in part]) for name in part[0]})
            loss = sum(term.coefficient * term.sum.sum() / totals[name] for name, term in found.items())
            loss.backward()
            loss_of_step += loss.item()
        losses.append(loss_of_step)
        grad_norms.append(torch.nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm).item())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    heads = [p.detach() for name, p in adapted.named_parameters() if ".modules_to_save." in name]
    return Solo(peft_weights(adapted), heads[0][0] if heads else None, losses, grad_norms)


def is_scorer(model: PreTrainedModel) -> bool:
    return "ForSequenceClassification" in type(model).__name__


def plain_outputs(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> Outputs:
    """All logits, masked attention, the labels read off afterwards."""
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    ids, attention = (
        _padded([s.input_ids for s in sequences], 0),
        _padded([[1] * len(s.input_ids) for s in sequences], 0),
    )
    labels = _padded([s.labels for s in sequences], IGNORED)
    if is_scorer(model.get_base_model() if hasattr(model, "get_base_model") else model):
        scores = model(input_ids=ids, attention_mask=attention).logits.squeeze(-1)
        nothing = torch.zeros(len(ids), 1)
        return Outputs(nothing, nothing, nothing, score=scores)
    if is_encoder_decoder:
        logits = model(input_ids=ids, attention_mask=attention, labels=labels).logits
    else:
        logits = model(input_ids=ids, attention_mask=attention).logits.roll(1, dims=1)
        labels[:, 0] = IGNORED
    mask = labels != IGNORED
    exact = logits if logits.dtype == torch.float64 else logits.float()
    logprobs = exact.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return Outputs(logprobs * mask, mask.to(exact), ((exact.argmax(-1) == labels) & mask).to(exact))


def _mask_only(batch: Sequence[Example], name: str, is_encoder_decoder: bool) -> Outputs:
    mask = (_padded([example[name].labels for example in batch], IGNORED) != IGNORED).double()
    if not is_encoder_decoder:
        mask[:, 0] = 0
    return Outputs(torch.zeros_like(mask), mask, torch.zeros_like(mask), score=torch.zeros(len(mask)))


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def peft_weights(adapted: torch.nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and ".lora_" in name:
            found.setdefault(name.removeprefix("base_model.model.").split(".lora_")[0], []).append(
                parameter.detach().clone()
            )
    return {name: (a, b) for name, (a, b) in found.items()}


def table_of(examples: Sequence[Example], model: PreTrainedModel, sources: np.ndarray | None = None) -> TokenTable:
    return TokenTable(examples, is_encoder_decoder=bool(model.config.is_encoder_decoder), sources=sources)


def distance(found: dict[str, tuple[Tensor, Tensor]], expected: dict[str, tuple[Tensor, Tensor]]) -> float:
    """‖found − expected‖ / ‖expected‖ over all weights."""
    assert found.keys() == expected.keys()
    pairs = [pair for name in found for pair in zip(found[name], expected[name], strict=True)]
    difference = sum((one - other).double().square().sum().item() for one, other in pairs)
    return (difference / sum(other.double().square().sum().item() for _, other in pairs)) ** 0.5
