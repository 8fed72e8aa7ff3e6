"""Greedy answers of a pack's trials: all records of all of them are decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytune_llm.evaluation.answering import Answering
from raytune_llm.evaluation.generate import generate
from raytune_llm.models.decoding.greedy import greedy_answers
from raytune_llm.models.out_of_memory import free_cached_memory, is_out_of_memory
from raytune_llm.training.packed.pack import Pack


class PackedAnswers:
    """Metrics of the answers that trials of a pack give."""

    def __init__(self, pack: Pack, answering: Answering, tokenizer: Any, *, batch_size: int) -> None:
        """`batch_size`: prompts that each trial answers at once, fewer where memory doesn't hold them."""
        self.pack, self.answering, self.tokenizer, self.batch_size = pack, answering, tokenizer, batch_size
        self._most_rows = 1 << 62
        """What memory has been found to hold at once."""

    def metrics(self, trial_ids: Sequence[str]) -> dict[str, dict[str, float]]:
        """The metrics of these trials as they are now."""
        rows = [self.pack.trial_ids.index(trial_id) for trial_id in trial_ids]
        outputs = self._one_by_one(rows) if self.pack.model.config.is_encoder_decoder else self._together(rows)
        return {trial_id: self.answering.metrics(texts) for trial_id, texts in zip(trial_ids, outputs, strict=True)}

    def _together(self, rows: Sequence[int]) -> list[list[str]]:
        """The texts of each of these rows. When memory runs out, they begin again with half as many at once."""
        prompts = [prompt for _ in rows for prompt in self.answering.prompts]
        adapters = [row for row in rows for _ in self.answering.prompts]
        while True:
            max_rows = min(self.batch_size * len(rows), self._most_rows)
            try:
                found = greedy_answers(
                    self.pack.model,
                    prompts,
                    adapters,
                    stack=self.pack.stack,
                    stop_ids=self.answering.stop_ids,
                    max_new_tokens=self.answering.max_new_tokens,
                    max_rows=max_rows,
                )
                break
            except RuntimeError as error:
                if max_rows == 1 or not is_out_of_memory(error):
                    raise
                self._most_rows = max_rows // 2
            free_cached_memory()
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in found]
        count = len(self.answering.prompts)
        return [texts[start : start + count] for start in range(0, len(texts), count)]

    def _one_by_one(self, rows: Sequence[int]) -> list[list[str]]:
        """The same by transformers' generation, for bases with an encoder."""
        found = []
        for row in rows:
            with self.pack.stack.routed(self.pack.stack.span(row, row + 1)):
                found.append(
                    generate(
                        self.pack.model,
                        self.tokenizer,
                        self.answering.prompts,
                        max_new_tokens=self.answering.max_new_tokens,
                        stop_ids=self.answering.stop_ids,
                        batch_size=self.batch_size,
                    )
                )
        return found
