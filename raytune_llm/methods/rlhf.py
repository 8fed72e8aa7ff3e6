"""Reinforcement learning from human feedback: a policy learns from rewards of its own completions, with a KL penalty.

    maximise  E[ reward(x, y) ] − kl_coefficient · KL(π(· | x) ‖ π_ref(· | x))

The algorithms are in methods/algorithms (RLOO, arXiv 2402.14740; GRPO, arXiv 2402.03300), the rewards and their mixture
in methods/rewards; TRL's trainers do the learning. The reference is the model that training starts from: the base, or
the adapter in which training continues. Leaves out: critics, several updates per sample, encoder-decoder bases (the
trainers have no such path).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from raytune_llm.data.examples import IGNORED, Example, TokenSequence
from raytune_llm.data.question import question
from raytune_llm.data.records import Preference, Prompt, Record, Supervised, Text
from raytune_llm.errors import require
from raytune_llm.evaluation.terms import Better
from raytune_llm.methods.algorithms.base import Algorithm
from raytune_llm.methods.base import Needs
from raytune_llm.methods.common.policy_init import PolicyInit
from raytune_llm.methods.rewards.base import Reward, scores
from raytune_llm.methods.samplers.base import Sampler
from raytune_llm.models.adapters.base import Adapter
from raytune_llm.stores.choices import name_of

if TYPE_CHECKING:
    from raytune_llm.data.tokenizing.tokens import Tokens
    from raytune_llm.methods.base import CheckContext, ModelRefs, Session, TrainerConfig

WINS = "win_rate"
JUDGED_WINS = "judge_win_rate"


@dataclass(frozen=True, kw_only=True)
class RLHF(PolicyInit):
    """Sample completions of the prompts and learn from their rewards."""

    metric: str
    """The eval metric that stops, ranks and selects trials."""
    algorithm: Algorithm
    """Computes advantages and the KL penalty (conf/method/algorithm)."""
    kl_coefficient: float
    """Cost of a nat of divergence from the reference, in units of reward; ≥ 0."""
    num_generations: int
    """Completions sampled for each prompt of a step, which are compared with each other; ≥ 2. A step has
    tuning.batch_size prompts."""
    max_completion_tokens: int
    """Longest completion; ≥ 1. One that is cut off there pays unended_penalty."""
    temperature: float
    """Of sampling, in training and evaluation; > 0."""
    sampler: Sampler
    """Draws the completions of a training (conf/method/sampler)."""
    rewards: dict[str, Reward]
    """The mixture of rewards (conf/method/rewards): method/rewards=[model,exact]. The first one with a weight also
    decides eval/win_rate."""
    judge_adapter: str | None
    """Registry reference of a second reward model, best trained on other preferences: it takes no part in training and
    decides eval/judge_win_rate, which shows a policy that only learned to please the first one. null = none."""
    reward_scale: float
    """Times each reward; > 0."""
    reward_clip: float | None
    """Largest size of each scaled reward, before its weight; > 0, or null for no bound."""
    length_penalty: float
    """Subtracted from the reward for each token of the completion; ≥ 0."""
    unended_penalty: float
    """Subtracted from the reward of a completion that was cut off; ≥ 0."""
    eval_prompts: int
    """Eval prompts answered at each evaluation, the first ones of the eval set; ≥ 1."""
    max_kl: float | None
    """Stop when eval/kl_per_token is above it, nats per token; null = never."""
    max_repetition: float | None
    """Stop when eval/repetition, the share of repeated 4-grams, is above it; null = never."""
    min_entropy: float | None
    """Stop when eval/entropy, nats per token, is below it; null = never."""

    records = (Preference, Supervised, Prompt)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kl_coefficient", "length_penalty", "unended_penalty"):
            require(getattr(self, name) >= 0, f"method.{name}", getattr(self, name), "≥ 0")
        for name in ("temperature", "reward_scale"):
            require(getattr(self, name) > 0, f"method.{name}", getattr(self, name), "> 0")
        for name in ("max_completion_tokens", "eval_prompts"):
            require(getattr(self, name) >= 1, f"method.{name}", getattr(self, name), "≥ 1")
        require(self.num_generations >= 2, "method.num_generations", self.num_generations, "≥ 2")
        require(self.reward_clip is None or self.reward_clip > 0, "method.reward_clip", self.reward_clip, "> 0 or null")
        weights = {name: reward.weight for name, reward in self.rewards.items()}
        require(bool(self.used_rewards), "method.rewards", weights, "at least one with a weight above 0")

    @property
    def used_rewards(self) -> dict[str, Reward]:
        """Those with a weight above 0."""
        return {name: reward for name, reward in self.rewards.items() if reward.weight}

    @property
    def needs(self) -> Needs:
        rewards = [reward.needs for reward in self.used_rewards.values()]
        return Needs(
            sampling=True,
            init_adapter=self.init_adapter,
            stages=self.init_stages() + tuple(stage for needs in rewards for stage in needs.stages),
            shared_keys=(
                "method.judge_adapter",
                *self.init_keys,
                *(key for needs in rewards for key in needs.shared_keys),
            ),
            decoder_only_reason="TRL's trainers that sample have no path for those; take method=dpo on the same "
            "preferences, or a causal base",
            gpu_for=self.sampler.gpu_for,
        )

    def check(self, context: CheckContext) -> None:
        from raytune_llm.methods.model_refs import check_base, resolve_ref
        from raytune_llm.stores.registry import Registry

        check_base(self.needs, context.base)
        for reward in self.used_rewards.values():
            reward.check(context)
        if context.adapter is None:
            return
        given = name_of(context.adapter, Adapter)
        require(context.adapter.kind == "adapter", "adapter", given, "lora: the reference is the base without it")
        super().check(context)
        if self.judge_adapter is not None:
            registry = Registry(context.registry_dir)
            resolve_ref(registry, "method.judge_adapter", self.judge_adapter, kind="reward", base=context.base)
        self.sampler.check()

    def question(self, record: Record) -> tuple[Text, str] | None:
        """Records without an answer have a prompt, too: its expected answer is ''."""
        return (record.prompt, "") if isinstance(record, Prompt) else question(record)

    def encode(self, record: Record, tokens: Tokens) -> Example:
        """The prompt as the policy reads it, cut to leave room for a completion; the record's own answer as labels."""
        assert isinstance(record, Prompt | Preference | Supervised)
        ids = tokens.sampled_prompt(record.prompt, max_new_tokens=self.max_completion_tokens)
        own = tokens.tokenizer.encode(_answer(record), add_special_tokens=False)
        return {"completion": TokenSequence(ids + own, [IGNORED] * len(ids) + own)}

    def versions(self) -> tuple[str, ...]:
        rewards = [version for reward in self.used_rewards.values() for version in reward.needs.versions]
        others = [version for version in (self.judge_adapter, self.init_adapter) if version is not None]
        return (*rewards, *others)

    def directions(self) -> dict[str, Better]:
        from raytune_llm.evaluation.policy import policy_directions

        return policy_directions([WINS] if self.judge_adapter is None else [WINS, JUDGED_WINS])

    def trainer_config(self, *, is_encoder_decoder: bool) -> TrainerConfig:
        from raytune_llm.methods.trainers.policy import policy_config

        return policy_config(self.algorithm, self.sampler)

    def session(self, refs: ModelRefs) -> Session:
        """The policy's training and measuring in this process. Raises InputError when a reward can't be opened."""
        from raytune_llm.methods.common.policy_bounds import PolicyBounds
        from raytune_llm.methods.common.reward_scorer import open_scorer
        from raytune_llm.methods.rewards.mixture import Mixture, WeightedScorer
        from raytune_llm.methods.trainers.policy import PolicySession, PolicySetup

        parts = tuple(
            WeightedScorer(f"method.rewards.{name}", reward.weight, reward.open(refs))
            for name, reward in self.used_rewards.items()
        )
        mixture = Mixture(parts, self.reward_scale, self.reward_clip, self.length_penalty, self.unended_penalty)
        judges = {WINS: mixture.verdicts}
        if self.judge_adapter is not None:
            judges[JUDGED_WINS] = partial(scores, "method.judge_adapter", open_scorer(refs, self.judge_adapter))
        setup = PolicySetup(
            algorithm=self.algorithm,
            sampler=self.sampler,
            num_generations=self.num_generations,
            max_completion_tokens=self.max_completion_tokens,
            temperature=self.temperature,
            kl_coefficient=self.kl_coefficient,
            reward=mixture,
            judges=judges,
            bounds=PolicyBounds(self.max_kl, self.max_repetition, self.min_entropy),
            init_folder=None if self.init_adapter is None else refs.folders[self.init_adapter],
            eval_prompts=self.eval_prompts,
        )
        return PolicySession(setup, refs)


def _answer(record: Prompt | Preference | Supervised) -> str:
    """The record's right answer, '' where it has none."""
    if isinstance(record, Supervised):
        return record.completion
    if isinstance(record, Preference):
        chosen = record.chosen
        return chosen if isinstance(chosen, str) else chosen[-1].content
    return ""
