"""Reward by a reward model (methods/reward.py), which reads a completion to its end as it read the preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytune_llm.data.examples import IGNORED, Rollout, TokenSequence
from raytune_llm.models.forward import batches, inference, outputs


class ModelReward:
    """The score of prompt and completion. A completion that was cut off is read as if it ended there."""

    def __init__(self, scorer: Any, *, end_id: int, pad_id: int, batch_size: int) -> None:
        """scorer: a reward model, adapted, on its device."""
        self._scorer, self._end_id, self._pad_id, self._batch_size = scorer, end_id, pad_id, batch_size

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        read = [[*r.prompt_ids, *r.completion_ids, *([] if r.ended else [self._end_id])] for r in rollouts]
        found = [0.0] * len(read)
        with inference(self._scorer):
            for batch in batches([len(ids) for ids in read], self._batch_size):
                sequences = [TokenSequence(read[i], [IGNORED] * len(read[i])) for i in batch]
                said = outputs(self._scorer, sequences, pad_id=self._pad_id).score
                assert said is not None
                for i, score in zip(batch, said.tolist(), strict=True):
                    found[i] = score
        return found
