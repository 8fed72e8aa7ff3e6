"""A policy at work in one process: TRL's trainers on the project's prompts and rewards, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytune_llm.compat import using_adapter
from raytune_llm.data.examples import IGNORED, Example, Rollout
from raytune_llm.data.tokens import Tokens
from raytune_llm.evaluation.policy import PolicyPrompt, Sampling, divergence, policy_metrics, roll_out, win_rate
from raytune_llm.methods.base import Measurement, ModelRefs
from raytune_llm.methods.rewards.function import Function
from raytune_llm.methods.rewards.mixture import Array, Mixture, Source, Weighed, scores
from raytune_llm.methods.rewards.model import ModelReward
from raytune_llm.methods.rewards.text import ExactAnswer, Pattern
from raytune_llm.models.forward import unwrapped
from raytune_llm.models.loading import load_tuned

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

Judge = Callable[[Sequence[Rollout]], Array]
"""Numbers that completions are compared by."""
TRAINERS = {"rloo": "RLOOTrainer", "grpo": "GRPOTrainer"}
CONFIGS = {"rloo": "RLOOConfig", "grpo": "GRPOConfig"}
"""TRL's classes of each algorithm."""


class PolicySession:
    """What methods/rlhf.py does with a model, a reward and a reference; `method` holds its knobs."""

    def __init__(self, method: Any, companions: ModelRefs) -> None:
        self.method, self.companions, self.eval_prompts = method, companions, method.eval_prompts
        tokenizer = companions.tokenizer
        tokens = Tokens(tokenizer, max_tokens=None, is_encoder_decoder=False)
        self.sampling = Sampling(
            max_new_tokens=method.max_completion_tokens,
            temperature=method.temperature,
            stop_ids=tuple(tokens.stop_ids()),
            pad_id=tokenizer.pad_token_id,
            batch_size=companions.batch_size,
            seed=companions.seed,
        )
        self.decode: Callable[[list[int]], str] = partial(tokenizer.decode, skip_special_tokens=True)
        self.reward = mixture(method, companions)
        judge = companions.judge_folder
        self.judges: dict[str, Judge] = {"win_rate": self.reward.verdicts}
        if judge is not None:
            self.judges["judge_win_rate"] = partial(scores, Weighed("judge", 1.0, _model_reward(companions, judge)))
        self._reference_verdicts: dict[str, Array] = {}

    def trainer(
        self,
        model: Any,
        examples: Sequence[Example],
        indices: list[int],
        *,
        tokenizer: Any,
        arguments: dict[str, Any],
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        """TRL's trainer. `indices` are prompts; each is sampled num_generations times, so a trainer's batch is that
        much larger."""
        import trl
        from datasets import Dataset

        unwrapped(model).generation_config.eos_token_id = list(self.sampling.stop_ids)
        rows = [{"prompt": one.prompt_ids, "text": one.prompt, "answer": one.answer} for one in self.asked(examples)]
        longest = max(len(row["prompt"]) for row in rows)
        return encoded(getattr(trl, TRAINERS[self.method.algorithm.value]))(
            model=model,
            reward_funcs=self._rewards,
            args=self.config(arguments, longest_prompt=longest),
            train_dataset=Dataset.from_list(rows).select(indices),
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    def config(self, arguments: dict[str, Any], *, longest_prompt: int) -> Any:
        """TRL's config of this training; longest_prompt in tokens."""
        import trl

        method = self.method
        per_device = arguments["per_device_train_batch_size"] * method.num_generations
        return getattr(trl, CONFIGS[method.algorithm.value])(
            **arguments | {"per_device_train_batch_size": per_device},
            num_generations=method.num_generations,
            max_completion_length=method.max_completion_tokens,
            temperature=method.temperature,
            beta=method.kl_coefficient,
            shuffle_dataset=False,
            disable_dropout=False,
            **method.sampler.arguments(self.sampling.stop_ids, longest_prompt + method.max_completion_tokens),
        )

    def measure(self, model: Any, examples: Sequence[Example], reference: Any = None) -> Measurement:
        """The policy's metrics on the examples, which are the same on every call, and its completions.

        reference: the model that speaks for the reference; None = `model` itself without what it has learned.
        """
        asked = self.asked(examples)
        as_reference = partial(by_itself, reference) if reference is not None else partial(_unlearned, model)
        if not self._reference_verdicts:
            with as_reference() as theirs:
                rollouts = roll_out(theirs, asked, self.sampling, self.decode)
            self._reference_verdicts = {name: judge(rollouts) for name, judge in self.judges.items()}
        rollouts = roll_out(model, asked, self.sampling, self.decode)
        kl, entropy = divergence(model, as_reference, rollouts, self.sampling)
        wins = {name: win_rate(judge(rollouts), self._reference_verdicts[name]) for name, judge in self.judges.items()}
        metrics = policy_metrics(
            rollouts, self.reward(rollouts), kl, entropy, wins, kl_coefficient=self.method.kl_coefficient
        )
        texts = [(rollout.prompt, rollout.answer, rollout.completion.strip()) for rollout in rollouts]
        return Measurement(metrics, texts)

    def why_stop(self, metrics: dict[str, float]) -> str | None:
        """Why training should stop now, with what to change, or None."""
        method = self.method
        kl, repeated, entropy = (metrics[f"eval/{name}"] for name in ("kl_per_token", "repetition", "entropy"))
        if method.max_kl is not None and kl > method.max_kl:
            return (
                f"KL runaway: eval/kl_per_token={kl:.3g} nats is above method.max_kl={method.max_kl:g}; raise "
                "method.kl_coefficient or lower tuning.learning_rate_multiplier"
            )
        if method.max_repetition is not None and repeated > method.max_repetition:
            return (
                f"repeated text: eval/repetition={repeated:.3g} is above method.max_repetition="
                f"{method.max_repetition:g}; raise method.length_penalty or method.kl_coefficient"
            )
        if method.min_entropy is not None and entropy < method.min_entropy:
            return (
                f"entropy collapse: eval/entropy={entropy:.3g} nats per token is below method.min_entropy="
                f"{method.min_entropy:g}; raise method.kl_coefficient or method.temperature, or lower "
                "tuning.learning_rate_multiplier"
            )
        return None

    def reference_model(self) -> Any:
        """The reference by itself, on the device, in eval mode."""
        base, folder = self.companions.base, self.companions.init_folder
        model = base.load() if folder is None else load_tuned(folder, base)
        return model.to(self.companions.device).eval()

    def asked(self, examples: Sequence[Example]) -> list[PolicyPrompt]:
        """The examples as prompts with their texts."""
        found = []
        for example in examples:
            sequence = example["completion"]
            num_prompt_tokens = sequence.labels.count(IGNORED)
            prompt, answer = sequence.input_ids[:num_prompt_tokens], sequence.input_ids[num_prompt_tokens:]
            found.append(PolicyPrompt(prompt, self.decode(prompt).removesuffix("\n"), self.decode(answer)))
        return found

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
        return self.reward([Rollout(*column, ended=column[1][-1] in stops) for column in columns]).tolist()


def mixture(method: Any, companions: ModelRefs) -> Mixture:
    """The rewards that the method's knobs weigh. Raises ValueError for a pattern or function that can't be used."""
    parts: list[Weighed] = []

    def add(name: str, weight: float, source: Callable[[], Source]) -> None:
        if weight:
            parts.append(Weighed(name, weight, source()))

    add("model", method.model_weight, lambda: _model_reward(companions, companions.reward_folder))
    add("exact", method.exact_weight, ExactAnswer)
    add("pattern", method.pattern_weight, lambda: Pattern(method.pattern))
    add("function", method.function_weight, lambda: Function(method.function, companions.allow_modules))
    return Mixture(tuple(parts), method.reward_scale, method.reward_clip, method.length_penalty, method.unended_penalty)


def _model_reward(companions: ModelRefs, folder: Path | None) -> ModelReward:
    assert folder is not None
    scorer = load_tuned(folder, companions.base, score=True).to(companions.device)
    tokenizer = companions.tokenizer
    return ModelReward(
        scorer, end_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id, batch_size=companions.batch_size
    )


@contextmanager
def by_itself(model: Any) -> Iterator[Any]:
    yield model


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
