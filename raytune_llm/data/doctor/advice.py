"""Settings to start with, from the size of the data, and what the chosen ones amount to.

Rules of thumb, to be replaced by a sweep: small data need more epochs and overfit sooner; an adapter needs room for
what there is to learn, which are the tokens with loss. Leaves out the base: its recommended learning rate is
multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from raytune_llm.data.doctor.language import listed
from raytune_llm.data.doctor.results import Advice, SplitFacts
from raytune_llm.data.findings import many

EPOCHS = ((100, 10), (1_000, 5), (10_000, 3), (100_000, 2))
"""Epochs below each number of records; 1 above."""
FEWEST_STEPS = 50
RANKS = ((20_000, 4), (2_000_000, 8))
"""Adapter size below each number of tokens to learn; 16 above."""
FEW_RECORDS = 100
HOSTED_TOKENS, HOSTED_EVAL, HOSTED_BYTES = 32_000, 256, 1 << 30
"""Usual limits of hosted tuning services: of a record, a validation set, a file."""


@dataclass(frozen=True)
class Horizon:
    """What a job is going to do with its data."""

    batch_size: int
    """Examples per optimizer step."""
    steps: int | None = None
    """None where it isn't chosen yet."""
    num_examples: int | None = None
    """Of an epoch, where sources have weights; None = each record of train once."""


DEFAULT_HORIZON = Horizon(batch_size=8)
"""For commands that train nothing."""


def advise(train: SplitFacts, horizon: Horizon) -> list[Advice]:
    """Settings to start with, each with its reason; none without tokens."""
    count = train.num_records if horizon.num_examples is None else horizon.num_examples
    learned = 0 if train.completion_tokens is None else train.completion_tokens.total
    if not learned:
        return []
    epochs = next((epochs for below, epochs in EPOCHS if count < below), 1)
    steps = max(FEWEST_STEPS, -(-count * epochs // horizon.batch_size))
    rank = next((rank for below, rank in RANKS if learned < below), 16)
    few = count < FEW_RECORDS
    return [
        Advice(
            "tuning.steps",
            str(steps),
            f"{steps * horizon.batch_size / count:.1f} epochs of {many(count, 'example')} at "
            f"tuning.batch_size={horizon.batch_size}; early stopping ends it sooner",
        ),
        Advice(
            "tuning.learning_rate_multiplier",
            "0.5" if few else "1.0",
            "few records are soon learned by heart; compare with 1.0"
            if few
            else "the rate recommended for the base; a sweep from 0.3 to 3 finds a better one",
        ),
        Advice(
            "tuning.adapter_size",
            str(rank),
            f"{many(learned, 'token')} in answers; more room than they need helps to learn them by heart",
        ),
    ]


def notes(splits: Mapping[str, SplitFacts], horizon: Horizon) -> Iterator[str]:
    """What the data amount to."""
    if (train := splits.get("train")) is None:
        return
    prompt, learned = train.prompt_tokens, train.completion_tokens
    if prompt is not None and learned is not None and learned.total:
        total = prompt.total + learned.total
        yield f"{total:,} tokens in train, {learned.total:,} of them in answers ({learned.total / total:.0%})"
    num_examples = train.num_records if horizon.num_examples is None else horizon.num_examples
    an_epoch = num_examples / horizon.batch_size
    note = f"{many(math.ceil(an_epoch), 'step')} an epoch at tuning.batch_size={horizon.batch_size}"
    if num_examples != train.num_records:
        note = f"{many(num_examples, 'example')} an epoch by the weights of the sources; {note}"
    if horizon.steps is not None:
        note += f"; tuning.steps={horizon.steps} makes {horizon.steps / max(an_epoch, 1e-9):.1f} epochs"
    yield note
    if train.pairs is not None:
        pairs = train.pairs
        yield (
            f"the longer answer is preferred in {pairs.longer_preferred / pairs.total:.0%} of the pairs, the shorter "
            f"in {pairs.shorter_preferred / pairs.total:.0%}"
        )
    if len(train.scripts) > 1 and list(train.scripts.values())[1] >= 0.05:
        yield f"letters of train: {listed(train.scripts)}"
    if spoken := [f"{name} {listed(facts.languages)}" for name, facts in splits.items() if facts.languages]:
        yield f"languages (ISO 639 codes; where they can be recognised): {'; '.join(spoken)}"
    yield hosted(splits)


def hosted(splits: Mapping[str, SplitFacts]) -> str:
    """Whether a hosted service with the usual limits would take the data."""
    longest = max(
        (facts.truncation.longest_tokens for facts in splits.values() if facts.truncation is not None), default=0
    )
    evals = splits["eval"].num_records if "eval" in splits else 0
    largest = max((facts.num_bytes for facts in splits.values()), default=0)
    over = [
        what
        for what, is_over in (
            (f"a record of {longest:,} tokens", longest > HOSTED_TOKENS),
            (f"{evals:,} eval records", evals > HOSTED_EVAL),
            (f"{largest / 2**30:.1f} GB of text", largest > HOSTED_BYTES),
        )
        if is_over
    ]
    limits = f"{HOSTED_TOKENS:,} tokens a record, {HOSTED_EVAL} eval records, 1 GB a file"
    verdict = f"exceeded by {' and '.join(over)}" if over else "kept"
    return f"limits that hosted services often have ({limits}): {verdict}"
