"""Records that occur more than once, prompts with contradicting answers, answers that are all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from raytune_llm.data.doctor.keys import NONE, Keys, mixed
from raytune_llm.data.doctor.labels import FEWEST_RECORDS, constant
from raytune_llm.data.doctor.view import NUM_SHOWN, View
from raytune_llm.data.findings import Finding, Severity, many
from raytune_llm.data.parts import answer_of, prompt_of
from raytune_llm.data.question import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray


def repeated(view: View, keys: Keys, labels: Mapping[str, int] | None) -> Iterator[Finding]:
    """What train has twice, and where it contradicts itself. `labels`: the table of a split whose answers are classes,
    where Labels reports that they are all the same."""
    _, first = np.unique(keys.whole, return_index=True)
    again = np.setdiff1d(np.arange(len(keys.whole)), first, assume_unique=True)
    if len(again):
        yield Finding(
            "duplicates",
            Severity.warning,
            view.name,
            f"{view.name}: {many(len(again), 'record')} {'repeats' if len(again) == 1 else 'repeat'} an earlier one "
            "word for word: what is repeated weighs more; leave it out unless that is meant",
            len(again),
            tuple(view.place(int(i), plain(prompt_of(view.records[int(i)]))) for i in again[:NUM_SHOWN]),
        )
    conflicting = _conflicting(keys)
    if len(conflicting):
        yield Finding(
            "conflicts",
            Severity.warning,
            view.name,
            f"{view.name}: conflicting answers for {many(len(conflicting), 'prompt')}: a model can learn one of them "
            "only; keep the right one",
            len(conflicting),
            tuple(view.place(int(i), plain(prompt_of(view.records[int(i)]))) for i in conflicting[:NUM_SHOWN]),
        )
    answers = keys.answer
    is_one = len(answers) >= FEWEST_RECORDS and answers[0] != NONE and (answers == answers[0]).all()
    if is_one and labels is None:
        yield constant(view.name, plain(answer_of(view.records[0]) or ""), len(answers))


def _conflicting(keys: Keys) -> NDArray[np.int64]:
    """Index of the first record of each prompt that has different answers, or a pair preferred both ways."""
    has_two = keys.other != NONE
    single = ~has_two & (keys.answer != NONE) & (not keys.prompts_repeat)
    pairs = has_two & (keys.answer != keys.other)
    prompts, answers = keys.prompt[single], keys.answer[single]
    both = np.unique(np.stack([prompts, answers], axis=1), axis=0) if single.any() else np.empty((0, 2), np.int64)
    found, counts = np.unique(both[:, 0], return_counts=True)
    several = found[counts > 1]
    one_way = mixed(mixed(keys.prompt, keys.answer), keys.other)[pairs]
    other_way = mixed(mixed(keys.prompt, keys.other), keys.answer)[pairs]
    both_ways = keys.prompt[pairs][np.isin(one_way, other_way)]
    is_conflict = np.isin(keys.prompt, np.concatenate([several, both_ways]))
    indices = np.flatnonzero(is_conflict)
    _, first = np.unique(keys.prompt[indices], return_index=True)
    return indices[np.sort(first)]
