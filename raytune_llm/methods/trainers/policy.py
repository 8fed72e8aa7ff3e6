"""A policy at work in one process: TRL's trainers on the project's prompts and rewards, and its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytune_llm.compat import using_adapter
from raytune_llm.data.examples import Example, Rollout
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.evaluation.policy import PolicyPrompt, Sampling, divergence, policy_metrics, roll_out, win_rate
from raytune_llm.methods.algorithms.base import Algorithm
from raytune_llm.methods.base import Measurement, ModelRefs, TrainerConfig, TrainerInputs
from raytune_llm.methods.common.policy_bounds import PolicyBounds
from raytune_llm.methods.rewards.base import Array, own_answer
from raytune_llm.methods.rewards.mixture import Mixture
from raytune_llm.methods.samplers.base import Sampler
from raytune_llm.models.forward import unwrapped
from raytune_llm.models.loading import load_tuned

if TYPE_CHECKING:
    from transformers import Trainer

Judge = Callable[[Sequence[Rollout]], Array]
"""Numbers by which completions are compared."""


@dataclass(frozen=True, kw_only=True)
class PolicySetup:
    """What a policy is trained and measured with."""

    algorithm: Algorithm
    sampler: Sampler
    num_generations: int
    """Completions of each prompt of a step."""
    max_completion_tokens: int
    temperature: float
    kl_coefficient: float
    """Cost of a nat of divergence from the reference, in units of reward."""
    reward: Mixture
    judges: Mapping[str, Judge]
    """By the name of the win rate that each decides."""
    bounds: PolicyBounds
    init_folder: Path | None
    """Files of the adapter in which training continues; None for a new one."""
    eval_prompts: int
    """Examples measured at each evaluation of a training."""


class PolicySession:
    """Trains and measures a policy by its setup."""

    train_metrics: tuple[str, ...] = ("reward", "kl", "completions/mean_length")

    def __init__(self, setup: PolicySetup, refs: ModelRefs) -> None:
        self.setup, self.refs, self.eval_prompts = setup, refs, setup.eval_prompts
        tokenizer = refs.tokenizer
        tokens = Tokens(tokenizer, max_tokens=None, is_encoder_decoder=False)
        self.sampling = Sampling(
            max_new_tokens=setup.max_completion_tokens,
            temperature=setup.temperature,
            stop_ids=tuple(tokens.stop_ids()),
            pad_id=tokenizer.pad_token_id,
            batch_size=refs.batch_size,
            seed=refs.seed,
        )
        self.decode: Callable[[Sequence[int]], str] = partial(tokenizer.decode, skip_special_tokens=True)
        self._reference_verdicts: dict[str, Array] = {}

    def trainer(self, inputs: TrainerInputs) -> Trainer:
        """TRL's trainer. `indices` are prompts; each is sampled num_generations times, so a trainer's batch is that
        much larger."""
        from datasets import Dataset

        unwrapped(inputs.model).generation_config.eos_token_id = list(self.sampling.stop_ids)
        prompts = self.prompts(inputs.examples)
        rows = [{"prompt": one.prompt_ids, "text": one.prompt, "answer": one.answer} for one in prompts]
        longest = max(len(row["prompt"]) for row in rows)
        return encoded(self.setup.algorithm.trainer_class())(
            model=inputs.model,
            reward_funcs=self._rewards,
            args=self.config(inputs.arguments, longest_prompt=longest),
            train_dataset=Dataset.from_list(rows).select(inputs.indices),
            processing_class=inputs.tokenizer,
            callbacks=inputs.callbacks,
        )

    def config(self, arguments: dict[str, Any], *, longest_prompt: int) -> Any:
        """TRL's config of this training; longest_prompt in tokens."""
        setup = self.setup
        per_device = arguments["per_device_train_batch_size"] * setup.num_generations
        return policy_config(setup.algorithm, setup.sampler).build(
            arguments,
            per_device_train_batch_size=per_device,
            num_generations=setup.num_generations,
            max_completion_length=setup.max_completion_tokens,
            temperature=setup.temperature,
            beta=setup.kl_coefficient,
            shuffle_dataset=False,
            disable_dropout=False,
            **setup.sampler.arguments(self.sampling.stop_ids, longest_prompt + setup.max_completion_tokens),
        )

    def measure(self, model: Any, examples: Sequence[Example], reference: Any = None) -> Measurement:
        """The policy's metrics on the examples, which are the same on every call, and its completions.

        reference: the reference model; None = `model` itself without what it has learned.
        """
        prompts, judges = self.prompts(examples), self.setup.judges
        as_reference = partial(nullcontext, reference) if reference is not None else partial(_unlearned, model)
        if not self._reference_verdicts:
            with as_reference() as entered:
                rollouts = roll_out(entered, prompts, self.sampling, self.decode)
            self._reference_verdicts = {name: judge(rollouts) for name, judge in judges.items()}
        rollouts = roll_out(model, prompts, self.sampling, self.decode)
        kl, entropy = divergence(model, as_reference, rollouts, self.sampling)
        wins = {name: win_rate(judge(rollouts), self._reference_verdicts[name]) for name, judge in judges.items()}
        rewards, kl_coefficient = self.setup.reward(rollouts), self.setup.kl_coefficient
        metrics = policy_metrics(rollouts, rewards, kl, entropy, wins, kl_coefficient=kl_coefficient)
        texts = [(rollout.prompt, rollout.answer, rollout.completion.strip()) for rollout in rollouts]
        return Measurement(metrics, texts)

    def why_stop(self, metrics: dict[str, float]) -> str | None:
        """Why training should stop now, with what to change, or None."""
        return self.setup.bounds.why_stop(metrics)

    def reference_model(self) -> Any:
        """The reference, on the device, in eval mode."""
        base, folder = self.refs.base, self.setup.init_folder
        device = self.refs.device
        model = base.load(device=device) if folder is None else load_tuned(folder, base, device=device)
        return model.eval()

    def prompts(self, examples: Sequence[Example]) -> list[PolicyPrompt]:
        """The examples' prompts with their texts."""
        answered = [own_answer(example, self.decode) for example in examples]
        return [PolicyPrompt(one.prompt_ids, one.prompt.removesuffix("\n"), one.answer) for one in answered]

    def _rewards(
        self,
        prompts: list[list[int]],
        completions: list[str],
        completion_ids: list[list[int]],
        text: list[str],
        answer: list[str],
        **_: Any,
    ) -> list[float]:
        """TRL's reward function."""
        columns = zip(prompts, completion_ids, text, completions, answer, strict=True)
        stops = self.sampling.stop_ids
        return self.setup.reward([Rollout(*column, ended=column[1][-1] in stops) for column in columns]).tolist()


def policy_config(algorithm: Algorithm, sampler: Sampler) -> TrainerConfig:
    """The config of TRL's trainer."""
    own = {"num_generations", "max_completion_length", "temperature", "beta", "shuffle_dataset", "disable_dropout"}
    own |= {"per_device_train_batch_size", *sampler.arguments((), 0)}
    return TrainerConfig(kind=algorithm.config_class(), own=frozenset(own))


def _unlearned(model: Any) -> AbstractContextManager[Any]:
    """A PEFT model as it was when training began: TRL keeps that as the adapter `ref`."""

    @contextmanager
    def switched() -> Iterator[Any]:
        with using_adapter(model, "ref" if "ref" in model.peft_config else None):
            yield model

    return switched()


def encoded(trainer_class: Any) -> Any:
    """TRL's trainer on prompts that are token ids already."""

    class EncodedTrainer(trainer_class):
        def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return prompts, None, {}

    return EncodedTrainer
