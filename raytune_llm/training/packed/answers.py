"""Greedy answers of a pack's trials: all records of all of them are decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytune_llm.evaluation.answering import Answering
from raytune_llm.evaluation.generate import answer_text, generate
from raytune_llm.evaluation.metrics import Metric
from raytune_llm.models.decoding.greedy import greedy_answers
from raytune_llm.models.decoding.step import can_batch
from raytune_llm.training.packed.pack import Pack


class PackedAnswers:
    """Metrics of the answers that trials of a pack give."""

    def __init__(self, pack: Pack, answering: Answering, tokenizer: Any, *, batch_size: int) -> None:
        """`batch_size`: prompts that each trial answers at once, fewer where memory doesn't hold them."""
        self.pack, self.answering, self.tokenizer, self.batch_size = pack, answering, tokenizer, batch_size

    def metrics(self, trial_ids: Sequence[str]) -> dict[str, dict[str, Metric]]:
        """The metrics of these trials as they are now."""
        rows = [self.pack.trial_ids.index(trial_id) for trial_id in trial_ids]
        outputs = self._together(rows) if can_batch(self.pack.model) else [self._alone(row) for row in rows]
        return {trial_id: self.answering.metrics(texts) for trial_id, texts in zip(trial_ids, outputs, strict=True)}

    def _together(self, rows: Sequence[int]) -> list[list[str]]:
        """The texts of each of these rows."""
        count = len(self.answering.prompts)
        found = greedy_answers(
            self.pack.model,
            [prompt for _ in rows for prompt in self.answering.prompts],
            [row for row in rows for _ in range(count)],
            stack=self.pack.stack,
            stop_ids=self.answering.stop_ids,
            max_new_tokens=self.answering.max_new_tokens,
            max_rows=self.batch_size * len(rows),
        )
        texts = [answer_text(self.tokenizer, ids) for ids in found]
        return [texts[start : start + count] for start in range(0, len(texts), count)]

    def _alone(self, row: int) -> list[str]:
        """The texts of a row of a base whose decoding is its own."""
        with self.pack.stack.routed(self.pack.stack.span(row, row + 1)):
            return generate(
                self.pack.model,
                self.tokenizer,
                self.answering.prompts,
                max_new_tokens=self.answering.max_new_tokens,
                stop_ids=self.answering.stop_ids,
                # prompts of a causal base would be padded on the left, which the pack's attention doesn't mask
                batch_size=self.batch_size if self.pack.model.config.is_encoder_decoder else 1,
            )
