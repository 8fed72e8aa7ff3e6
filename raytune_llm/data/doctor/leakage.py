"""Records of eval and test that a model has seen before: they measure memory. Copies by their keys, near copies by
MinHash (Broder, 1997; datasketch), which finds candidates whose words are then compared exactly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from datasketch import MinHash, MinHashLSH

from raytune_llm.data.doctor.instruction import Instruction, changing
from raytune_llm.data.doctor.keys import Keys
from raytune_llm.data.doctor.view import NUM_SHOWN, Hits, View, excerpt
from raytune_llm.data.findings import Finding, Severity, many
from raytune_llm.data.parts import answer_of, prompt_of
from raytune_llm.data.question import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAR = 0.8
"""Two prompts are nearly the same from this share of common words (Jaccard: common words / all words of both)."""
CANDIDATE = 0.55
"""Looking for this, MinHash misses 2 of 1,000 pairs of 0.8."""
LIKELY = 0.65
"""The share of equal MinHashes from which sets are compared exactly: 4 standard deviations below 0.8."""
NUM_PERMUTATIONS = 128
MOST_TRAIN = 50_000
MOST_HELD_OUT = 2_000
"""Records that near copies are looked for among, evenly spread over a split."""
MOST_COMPARED = 500_000
"""Exact comparisons, some seconds: texts that are all alike make no more."""
FEWEST_WORDS = 4
"""Prompts of fewer different words, without the instruction that all have, are too short to be nearly the same."""
MOST_CHARACTERS = 4_000
"""Of a longer prompt, its end is compared."""
LONG_WORD = 16
"""From this mean length on, words are none: a script without spaces. Runs of 3 characters are compared then."""
WORD = re.compile(r"\w+")


def copies(views: Mapping[str, View], keys: Mapping[str, Keys]) -> Iterator[Finding]:
    """Records of eval and test whose prompt (where prompts repeat in train anyway: prompt and answer) occurs in train,
    and those of test that occur in eval."""
    for name, known in (("eval", "train"), ("test", "train"), ("test", "eval")):
        if name not in views or known not in views:
            continue
        which = "prompt_and_answer" if keys[known].prompts_repeat else "prompt"
        found = np.flatnonzero(np.isin(getattr(keys[name], which), getattr(keys[known], which)))
        view = views[name]
        if not len(found):
            continue
        hits = Hits()
        for i in map(int, found):
            hits.add(i, plain(prompt_of(view.records[i])) if hits.count < NUM_SHOWN else "")
        effect = (
            f"{name} scores are optimistic: leave these out of train"
            if known == "train"
            else "test confirms what was chosen on eval, and nothing else"
        )
        yield Finding(
            "leakage" if known == "train" else "test_in_eval",
            Severity.warning,
            name,
            f"{hits.count:,} of {many(len(view.records), f'{name} record')} also occur in {known} (leakage): {effect}",
            hits.count,
            hits.places(view),
        )


def near_copies(views: Mapping[str, View], keys: Mapping[str, Keys], instruction: Instruction) -> Iterator[Finding]:
    """Records of eval and test whose prompt is nearly one of train's; exact copies are left to `copies`."""
    train = views.get("train")
    held = {name: view for name, view in views.items() if name != "train"}
    if train is None or not held:
        return
    repeat = keys["train"].prompts_repeat
    which = "prompt_and_answer" if repeat else "prompt"
    index, chosen, new = Index(), list[tuple[str, int]](), {}
    for name, view in held.items():
        fresh = np.flatnonzero(~np.isin(getattr(keys[name], which), getattr(keys["train"], which)))
        sample = [int(fresh[i]) for i in spread(len(fresh), MOST_HELD_OUT)]
        new[name] = len(sample), len(fresh)
        chosen += [(name, i) for i in sample]
        for text in _texts(view, sample, instruction, with_answer=repeat):
            index.add(word_set(text))
    known = spread(len(train.records), MOST_TRAIN)
    twins, num_known = index.twins(map(word_set, _texts(train, known, instruction, with_answer=repeat)))
    for name, view in held.items():
        hits = Hits()
        for place, twin in twins.items():
            if chosen[place][0] == name:
                i = chosen[place][1]
                text = plain(prompt_of(view.records[i])) if hits.count < NUM_SHOWN else ""
                hits.add(i, f"{excerpt(text, 30)} ≈ {train.where(known[twin])}")
        if hits.count:
            what = "prompt with its answer" if repeat else "prompt"
            yield _near_finding(view, hits, *new[name], num_known, len(train.records), what)


def _near_finding(view: View, hits: Hits, looked: int, new: int, known: int, train: int, what: str) -> Finding:
    sampled = [f"{looked:,} of {view.name}"] * (looked < new) + [f"{known:,} of train"] * (known < train)
    note = f" (in a sample of {' and '.join(sampled)})" if sampled else ""
    do = "shares" if hits.count == 1 else "share"
    text = (
        f"{hits.count:,} of {many(looked, f'{view.name} prompt')}{note} {do} {NEAR:.0%} or more of the words with a "
        f"prompt of train: {view.name} scores may be optimistic; leave such pairs in one split"
    )
    return Finding("near_leakage", Severity.warning, view.name, text, hits.count, hits.places(view))


def spread(total: int, most: int) -> Sequence[int]:
    """At most `most` indices, evenly spread."""
    return range(total) if total <= most else [i * total // most for i in range(most)]


def _texts(view: View, indices: Iterable[int], instruction: Instruction, *, with_answer: bool) -> Iterator[str]:
    """What differs between prompts, with their answers where that is asked for."""
    for i in indices:
        record = view.records[i]
        prompt = instruction.without(changing(prompt_of(record)))
        yield f"{prompt}\n{plain(answer_of(record) or '')}" if with_answer else prompt


class Index:
    """Texts of which near copies are looked for, as sets of words."""

    def __init__(self) -> None:
        self._lsh = MinHashLSH(threshold=CANDIDATE, num_perm=NUM_PERMUTATIONS)
        self._words: list[NDArray[np.uint64]] = []
        self._sketches: list[NDArray[np.uint64]] = []

    def add(self, words: NDArray[np.uint64]) -> None:
        """Add the words of one text; too few are never found."""
        made = sketch(words)
        if len(words) >= FEWEST_WORDS:
            self._lsh.insert(len(self._words), made, check_duplication=False)
        self._words.append(words)
        self._sketches.append(made.hashvalues)

    def twins(self, texts: Iterable[NDArray[np.uint64]]) -> tuple[dict[int, int], int]:
        """The first of `texts` that is nearly one of the index, by its place there, in order; and how many of `texts`
        were looked at: all, unless there is too much to compare."""
        found: dict[int, int] = {}
        sketches, compared, num_seen = np.array(self._sketches), 0, 0
        for num_seen, words in enumerate(texts, 1):
            if len(words) < FEWEST_WORDS:
                continue
            made = sketch(words)
            left = [place for place in self._lsh.query(made) if place not in found]
            if left:
                alike = (sketches[left] == made.hashvalues).mean(axis=1)
                likely = [place for place, share in zip(left, alike, strict=True) if share >= LIKELY]
                compared += len(likely)
                found |= {place: num_seen - 1 for place in likely if jaccard(words, self._words[place]) >= NEAR}
            if compared > MOST_COMPARED:
                break
        return dict(sorted(found.items())), num_seen


def word_set(text: str) -> NDArray[np.uint64]:
    """Hashes of the different words of a text, sorted; case and punctuation don't count."""
    words = set(WORD.findall(text[-MOST_CHARACTERS:].casefold()))
    if words and sum(map(len, words)) > LONG_WORD * len(words):
        words = {word[i : i + 3] for word in words for i in range(max(1, len(word) - 2))}
    if len(HASHES) > MOST_HASHES:
        HASHES.clear()
    return np.sort(np.fromiter(map(HASHES.__getitem__, words), dtype=np.uint64, count=len(words)))


class Hashes(dict[str, int]):
    """The hash of each word, computed once."""

    def __missing__(self, word: str) -> int:
        self[word] = found = int(xxhash.xxh32_intdigest(word.encode("utf-8", "surrogatepass")))
        return found


HASHES, MOST_HASHES = Hashes(), 1 << 18


def sketch(words: NDArray[np.uint64]) -> MinHash:
    """The MinHash of a set of words."""
    made = _empty_sketch().copy()
    made.update_batch(words.tolist())
    return made


@cache
def _empty_sketch() -> MinHash:
    """One to copy: its permutations take longer to draw than a text to sketch."""
    return MinHash(num_perm=NUM_PERMUTATIONS, hashfunc=int)


def jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    """|A ∩ B| / |A ∪ B|."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)
