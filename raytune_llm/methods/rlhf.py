"""Reinforcement learning from human feedback: a policy learns to say what is rewarded, on a leash to its reference.

    maximise  E[ reward(x, y) ] − kl_coefficient · KL(π(· | x) ‖ π_ref(· | x))

RLOO (Ahmadian et al., 2024, arXiv 2402.14740) takes the KL off the reward and compares each completion with the mean of
its siblings; GRPO (Shao et al., 2024, arXiv 2402.03300) divides by their spread and adds the KL to the loss. TRL's
trainers do the learning, the reward is mixed here (raytune_llm/rewards). The reference is where training began: the
base, or the adapter that training goes on in. Leaves out: critics, several updates per sample, encoder-decoder bases
(the trainers have no such path).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from raytune_llm.data.examples import IGNORED, Example, TokenSequence
from raytune_llm.data.question import question
from raytune_llm.data.records import Message, Preference, Prompt, Record, Supervised, Text
from raytune_llm.errors import require
from raytune_llm.methods.base import Method, Needs, Stage
from raytune_llm.methods.common.policy_init import PolicyInit
from raytune_llm.methods.samplers.base import Sampler

if TYPE_CHECKING:
    from raytune_llm.data.tokens import Tokens
    from raytune_llm.methods.base import ModelRefs, Session


class Algorithm(Enum):
    """How advantages and the leash are computed."""

    rloo = "rloo"
    grpo = "grpo"


@dataclass(frozen=True, kw_only=True)
class RLHF(PolicyInit):
    """Sample completions of the prompts and learn from their rewards."""

    metric: str
    """The eval metric that stops, ranks and selects trials."""
    algorithm: Algorithm
    """rloo or grpo."""
    kl_coefficient: float
    """What a nat of divergence from the reference costs, in units of reward; ≥ 0."""
    num_generations: int
    """Completions sampled for each prompt of a step, which are compared with each other; ≥ 2. A step has
    tuning.batch_size prompts."""
    max_completion_tokens: int
    """Longest completion; ≥ 1. One that is cut off there pays unended_penalty."""
    temperature: float
    """Of sampling, in training and evaluation; > 0."""
    sampler: Sampler
    """Who draws the completions of a training (conf/method/sampler)."""
    reward_adapter: str | None
    """Registry reference of a reward model of the same base, NAME@version; null = trained first, from the
    preferences."""
    judge_adapter: str | None
    """Registry reference of a second reward model, best trained on other preferences: it has no say in training and
    counts eval/judge_win_rate, so that a policy that learned to please the first one alone is seen. null = none."""
    model_weight: float
    """Weight of the reward model's score; 0 = no reward model."""
    exact_weight: float
    """Weight of 1 for the record's own answer, 0 for another; 0 = not used."""
    pattern: str | None
    """Regular expression (Python's) that a completion should contain."""
    pattern_weight: float
    """Weight of 1 where the pattern is found; 0 = not used."""
    function: str | None
    """MODULE:FUNCTION called with (prompt, completion, answer), which returns a number; its module must be in
    allow_modules."""
    function_weight: float
    """Weight of what the function returns; 0 = not used."""
    reward_scale: float
    """Times the weighed sum of rewards; > 0."""
    reward_clip: float | None
    """Largest size of the scaled sum; > 0, or null for no bound."""
    length_penalty: float
    """Taken off the reward for each token of the completion; ≥ 0."""
    unended_penalty: float
    """Taken off the reward of a completion that was cut off; ≥ 0."""
    eval_prompts: int
    """Eval prompts answered at each evaluation, the first ones of the eval set; ≥ 1."""
    max_kl: float | None
    """Stop when eval/kl_per_token is above it, nats per token; null = never."""
    max_repetition: float | None
    """Stop when eval/repetition, the share of repeated 4-grams, is above it; null = never."""
    min_entropy: float | None
    """Stop when eval/entropy, nats per token, is below it; null = never."""
    reward_steps: int
    """Steps of the reward model that is trained first; ≥ 1."""
    reward: Method
    """The method that trains it."""

    records = (Preference, Supervised, Prompt)

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = ("model_weight", "exact_weight", "pattern_weight", "function_weight")
        for name in ("kl_coefficient", "length_penalty", "unended_penalty", *weights):
            require(getattr(self, name) >= 0, f"method.{name}", getattr(self, name), "≥ 0")
        for name in ("temperature", "reward_scale"):
            require(getattr(self, name) > 0, f"method.{name}", getattr(self, name), "> 0")
        for name in ("max_completion_tokens", "eval_prompts", "reward_steps"):
            require(getattr(self, name) >= 1, f"method.{name}", getattr(self, name), "≥ 1")
        require(self.num_generations >= 2, "method.num_generations", self.num_generations, "≥ 2")
        require(self.reward_clip is None or self.reward_clip > 0, "method.reward_clip", self.reward_clip, "> 0 or null")
        require(any(getattr(self, name) for name in weights), "method.model_weight", 0, f"one of {weights} above 0")
        for name in ("pattern", "function"):
            given = getattr(self, name) is not None
            weight = getattr(self, f"{name}_weight")
            require(given == (weight > 0), f"method.{name}_weight", weight, f"above 0 with method.{name}, 0 without it")

    @property
    def needs(self) -> Needs:
        reward = Stage(
            name="reward",
            meaning="a reward model from the preferences",
            method=self.reward,
            steps=self.reward_steps,
            data=None,
            key="reward_adapter",
            instead="name one with method.reward_adapter=NAME@version, or set method.model_weight=0 and another "
            "reward's weight",
        )
        stages = self.sft_stages() + ((reward,) if self.model_weight > 0 and self.reward_adapter is None else ())
        gpu_for = self.sampler.gpu_for
        return Needs(sampling=True, init_adapter=self.init_adapter, stages=stages, gpu_for=gpu_for)

    def question(self, record: Record) -> tuple[Text, str] | None:
        """A prompt alone may be asked, too: no answer of it is expected."""
        return (record.prompt, "") if isinstance(record, Prompt) else question(record)

    def encode(self, record: Record, tokens: Tokens) -> Example:
        """The prompt as the policy reads it, cut to leave room for a completion; the record's own answer as labels."""
        assert isinstance(record, Prompt | Preference | Supervised)
        ids = tokens.prompt(record.prompt, max_new_tokens=self.max_completion_tokens)
        own = tokens.tokenizer.encode(_answer(record), add_special_tokens=False)
        return {"completion": TokenSequence(ids + own, [IGNORED] * len(ids) + own)}

    def session(self, companions: ModelRefs) -> Session:
        """The policy's training and measuring in this process. Raises ValueError when a reward can't be had."""
        from raytune_llm.methods.trainers.policy import PolicySession

        return PolicySession(self, companions)


def _answer(record: Prompt | Preference | Supervised) -> str:
    """The answer that the record holds to be right, '' where it has none."""
    if isinstance(record, Supervised):
        return record.completion
    if isinstance(record, Preference):
        chosen = record.chosen
        return chosen if isinstance(chosen, str) else _last(chosen)
    return ""


def _last(turns: Sequence[Message]) -> str:
    return turns[-1].content
