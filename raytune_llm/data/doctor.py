"""Statistics of a job's data, and what in them would spoil the result.

Everything is counted over parsed records and their encoded examples; whether the texts are true or fair is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from raytune_llm.data.diagnosis import Diagnosis, Found, SplitFacts
from raytune_llm.data.encode import EncodedSplit, EncodedSplits
from raytune_llm.data.examples import IGNORED, Example
from raytune_llm.data.files import Splits
from raytune_llm.data.records import Chat, Message, Preference, Rationale, Record, Supervised, Text

SMALL_EVAL = 30
"""Fewer records than this leave 95 % intervals of about ±18 points on an accuracy."""
MUCH_CUT = 0.05
MOST_LABELS = 20
SKEWED = 0.6
"""A label is rare when it has less than this share of an equal part."""
NUM_SHOWN = 3


def examine(splits: Splits, encoded: EncodedSplits | None) -> Diagnosis:
    """Count over all splits, and over their tokens where they are encoded."""
    of_splits = {} if encoded is None else dict(encoded.items())
    is_encoder_decoder = encoded is not None and encoded.is_encoder_decoder
    facts = {name: _facts(records, of_splits.get(name), is_encoder_decoder) for name, records in splits.items()}
    duplicates = len(splits.train) - len(set(splits.train))
    leaked, conflicts, oddities = _leaked(splits), _conflicts(splits.train), _oddities(splits.train)
    return Diagnosis(
        splits=facts,
        carved=splits.carved,
        max_tokens=None if encoded is None else encoded.max_tokens,
        duplicates=duplicates,
        leaked=leaked,
        conflicts=conflicts,
        oddities=oddities,
        warnings=[
            *_truncation_warnings(facts),
            *_label_warnings(facts),
            *_record_warnings(splits, duplicates, leaked, conflicts, oddities),
        ],
        problems=[*_empty(splits, of_splits)],
    )


def _facts(records: Sequence[Record], encoded: EncodedSplit | None, is_encoder_decoder: bool) -> SplitFacts:
    prompt, completion = _lengths([] if encoded is None else encoded.examples, is_encoder_decoder)
    return SplitFacts(
        num_records=len(records),
        kinds=dict(Counter(type(record).__name__ for record in records)),
        prompt_tokens=None if encoded is None else _percentiles(prompt),
        completion_tokens=None if encoded is None else _percentiles(completion),
        truncation=None if encoded is None else encoded.truncation,
        labels=_labels(records),
    )


def _lengths(examples: Iterable[Example], is_encoder_decoder: bool) -> tuple[list[int], list[int]]:
    """Number of tokens without and with loss, of each sequence that has any with."""
    prompts, completions = [], []
    for example in examples:
        for sequence in example.values():
            num_labels = len(sequence.labels) - sequence.labels.count(IGNORED)
            if num_labels == 0:
                continue
            prompts.append(len(sequence.input_ids) - (0 if is_encoder_decoder else num_labels))
            completions.append(num_labels)
    return prompts, completions


def _percentiles(lengths: list[int]) -> dict[str, int]:
    ordered = sorted(lengths) or [0]
    last = len(ordered) - 1
    return {"median": ordered[last // 2], "95 %": ordered[round(last * 0.95)], "longest": ordered[-1]}


def answer_of(record: Record) -> Text | None:
    """The answer to learn, where the record has exactly one."""
    match record:
        case Supervised():
            return record.completion
        case Rationale():
            return record.label
        case Preference():
            return record.chosen
        case Chat():
            return next(message.content for message in reversed(record.messages) if message.role == "assistant")
    return None


def prompt_of(record: Record) -> Text:
    """The prompt of the record's answer; of a chat, all turns before the last assistant turn."""
    if not isinstance(record, Chat):
        return record.prompt
    last = max(i for i, message in enumerate(record.messages) if message.role == "assistant")
    return record.messages[:last]


def _key(text: Text | None) -> str:
    """Text for comparison: whitespace and case don't count."""
    if isinstance(text, tuple):
        text = "\n".join(f"{message.role}: {message.content}" for message in text if isinstance(message, Message))
    return " ".join((text or "").split()).casefold()


def _labels(records: Sequence[Record]) -> dict[str, int] | None:
    """Counts of completions that look like classes: at most 20 different ones, each of them at least twice."""
    answers = [answer_of(record) for record in records if isinstance(record, Supervised | Rationale)]
    counts = Counter(answer for answer in answers if isinstance(answer, str))
    looks_so = 2 <= len(counts) <= MOST_LABELS and min(counts.values()) >= 2
    return dict(counts.most_common()) if looks_so and len(answers) == len(records) else None


def _leaked(splits: Splits) -> dict[str, Found]:
    prompts = Counter(_key(prompt_of(record)) for record in splits.train)
    with_answer = len(prompts) < len(splits.train) / 2

    def key(record: Record) -> str:
        return _key(prompt_of(record)) + ("\n" + _key(answer_of(record)) if with_answer else "")

    known = {key(record) for record in splits.train}
    found = {}
    for name, records in (("eval", splits.eval), ("test", splits.test)):
        seen = [record for record in records if key(record) in known]
        if seen:
            found[name] = Found(len(seen), [_short(prompt_of(record)) for record in seen[:NUM_SHOWN]])
    return found


def _conflicts(train: Sequence[Record]) -> Found:
    answers: dict[str, set[str]] = defaultdict(set)
    texts: dict[str, str] = {}
    pairs: set[tuple[str, str, str]] = set()
    for record in train:
        prompt = _key(prompt_of(record))
        texts.setdefault(prompt, _short(prompt_of(record)))
        if isinstance(record, Preference):
            chosen, rejected = _key(record.chosen), _key(record.rejected)
            pairs.add((prompt, chosen, rejected))
            if (prompt, rejected, chosen) in pairs:
                answers[prompt] |= {chosen, rejected}
        elif (answer := answer_of(record)) is not None:
            answers[prompt].add(_key(answer))
    conflicting = [prompt for prompt, found in answers.items() if len(found) > 1]
    return Found(len(conflicting), [texts[prompt] for prompt in conflicting[:NUM_SHOWN]])


def _oddities(train: Sequence[Record]) -> dict[str, int]:
    texts = [(record, str(answer)) for record in train if isinstance(answer := answer_of(record), str)]
    found = {
        "answers with leading or trailing whitespace": sum(text != text.strip() for record, text in texts),
        "answers with a replacement character (�), a sign of a wrong encoding": sum(
            "\ufffd" in text for _, text in texts
        ),
        "chats that end in a user turn, which is not learned from": sum(
            isinstance(record, Chat) and record.messages[-1].role != "assistant" for record in train
        ),
    }
    return {what: count for what, count in found.items() if count}


def _truncation_warnings(facts: dict[str, SplitFacts]) -> Iterable[str]:
    for name, split in facts.items():
        if (cut := split.truncation) is None or not cut.records:
            continue
        if cut.cut > MUCH_CUT * cut.records:
            lost = f"losing {cut.label_tokens_lost / max(cut.label_tokens, 1):.0%} of the tokens to learn"
            yield (
                f"{name}: {cut.cut} of {cut.records} sequences ({cut.cut / cut.records:.0%}) are truncated, {lost}; "
                f"the longest has {cut.longest_tokens} tokens: shorten the records, raise data.max_tokens, or use "
                "a base with a longer context"
            )
        if cut.dropped:
            yield f"{name}: {cut.dropped} of {cut.records} sequences are dropped: truncation leaves no answer token"


def _label_warnings(facts: dict[str, SplitFacts]) -> Iterable[str]:
    train = facts["train"].labels if "train" in facts else None
    if train is None:
        return
    for name, split in facts.items():
        if split.labels is None:
            continue
        rare, count = list(split.labels.items())[-1]
        share = count / split.num_records
        if share < SKEWED / len(split.labels):
            yield (
                f"{name} labels are imbalanced ({rare!r} {share:.1%}): accuracy is misleading; "
                f"report the F1 of {rare!r}"
            )
        unknown = sorted(set(split.labels or ()) - set(train))
        if unknown:
            yield f"{name} has labels that never occur in train: {', '.join(map(repr, unknown[:NUM_SHOWN]))}"


def _record_warnings(
    splits: Splits, duplicates: int, leaked: dict[str, Found], conflicts: Found, oddities: dict[str, int]
) -> Iterable[str]:
    for name, found in leaked.items():
        total = len(getattr(splits, name))
        yield (
            f"{found.count} of {total} {name} records also occur in train (leakage): {name} scores are optimistic: "
            f"{_list(found)}"
        )
    for name, records in splits.items():
        if name != "train" and len(records) < SMALL_EVAL:
            yield (
                f"{name} has {len(records)} records: confidence intervals will be wide; use at least {SMALL_EVAL}, "
                "better 200"
            )
    if conflicts.count:
        yield f"conflicting answers for {conflicts.count} prompts of train: {_list(conflicts)}"
    if duplicates:
        yield f"duplicate records in train: {duplicates}"
    yield from (f"{what}: {count} in train" for what, count in oddities.items())
    reasoned = [record for record in splits.train if isinstance(record, Rationale)]
    for key, lacking in (
        ("label (output_text)", sum(record.label is None for record in reasoned)),
        ("rationale", sum(record.rationale is None for record in reasoned)),
    ):
        if lacking:
            yield f"{lacking} of {len(reasoned)} train records have no {key}; jobs/annotate.py has a teacher write it"


def _empty(splits: Splits, encoded: dict[str, EncodedSplit]) -> Iterable[str]:
    for name, records in splits.items():
        labelled = [record for record in records if not isinstance(record, Rationale) or record.label is not None]
        if name != "train" and not labelled:
            yield f"no record of {name} has a label (output_text), so no answer can be scored"
        if name in encoded and not encoded[name].examples:
            yield f"nothing is left of {name} after truncation"


def _short(text: Text) -> str:
    """The end of a prompt, where it mostly differs."""
    words = text if isinstance(text, str) else (text[-1].content if text else "")
    words = " ".join(words.split())
    return words if len(words) <= 60 else f"…{words[-59:]}"


def _list(found: Found) -> str:
    return ", ".join(map(repr, found.first)) + (" …" if found.count > len(found.first) else "")
