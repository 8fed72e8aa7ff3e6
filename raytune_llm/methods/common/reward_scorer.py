"""A reward model that scores completions in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytune_llm.data.examples import IGNORED, Rollout, TokenSequence
from raytune_llm.methods.base import ModelRefs
from raytune_llm.models.batches import run_batches
from raytune_llm.models.forward import inference, outputs
from raytune_llm.models.loading import load_tuned


def open_scorer(refs: ModelRefs, reference: str) -> RewardScorer:
    """The scorer of a reward model that the session has the files of. reference: the registry's."""
    model = load_tuned(refs.folders[reference], refs.base, score=True).to(refs.device)
    tokenizer = refs.tokenizer
    return RewardScorer(model, eos_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id, batch_size=refs.batch_size)


class RewardScorer:
    """The score of prompt and completion. A completion that was cut off is read as if it ended there."""

    def __init__(self, model: Any, *, eos_id: int, pad_id: int, batch_size: int) -> None:
        """model: a reward model, adapted, on its device."""
        self._model, self._eos_id, self._pad_id, self._batch_size = model, eos_id, pad_id, batch_size

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        read = [[*r.prompt_ids, *r.completion_ids, *([] if r.ended else [self._eos_id])] for r in rollouts]
        found = [0.0] * len(read)

        def score(batch: list[int]) -> None:
            sequences = [TokenSequence(read[i], [IGNORED] * len(read[i])) for i in batch]
            scores = outputs(self._model, sequences, pad_id=self._pad_id).score
            assert scores is not None
            for i, one in zip(batch, scores.tolist(), strict=True):
                found[i] = one

        with inference(self._model):
            run_batches([len(ids) for ids in read], self._batch_size, score)
        return found
