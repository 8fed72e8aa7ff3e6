"""What a job's data look like to its base and method, and what in them would spoil the result.

All is counted over parsed records and their token sequences; whether the texts are true or fair is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from raytune_llm.data.diagnosis import Diagnosis, Found, SplitFacts
from raytune_llm.data.examples import IGNORED, Example
from raytune_llm.data.files import Splits
from raytune_llm.data.records import Chat, Message, Preference, Rationale, Record, Supervised, Text
from raytune_llm.data.tokens import Truncation

if TYPE_CHECKING:
    from raytune_llm.data.tokens import Tokens

SMALL_EVAL = 30
"""Fewer records than this leave 95 % intervals of about ±18 points on an accuracy."""
MUCH_CUT = 0.05
MOST_LABELS = 20
SKEWED = 0.6
"""A label is rare when it has less than this share of an equal part."""
NUM_SHOWN = 3


Encode = Callable[[Record, "Tokens"], Example | None]


def examine(splits: Splits, tokens: Tokens | None, encode: Encode) -> Diagnosis:
    """Count over all splits; with `tokens`, also encode every record as the method would (`Method.encode`).

    Raises:
        ValueError: a record can't be encoded, naming split and number.
    """
    facts, examples = {}, {}
    for name, records in splits.items():
        examples[name], truncation = _encoded(name, records, tokens, encode)
        prompt, completion = _lengths(examples[name], tokens is not None and tokens.is_encoder_decoder)
        facts[name] = SplitFacts(
            num_records=len(records),
            kinds=dict(Counter(type(record).__name__ for record in records)),
            prompt_tokens=_percentiles(prompt) if tokens else None,
            completion_tokens=_percentiles(completion) if tokens else None,
            truncation=truncation,
            labels=_labels(records),
        )
    duplicates = len(splits.train) - len(set(splits.train))
    leaked, conflicts, oddities = _leaked(splits), _conflicts(splits.train), _oddities(splits.train)
    return Diagnosis(
        splits=facts,
        carved=splits.carved,
        max_tokens=tokens.max_tokens if tokens else None,
        duplicates=duplicates,
        leaked=leaked,
        conflicts=conflicts,
        oddities=oddities,
        warnings=[
            *_cut_warnings(facts),
            *_label_warnings(facts),
            *_record_warnings(splits, duplicates, leaked, conflicts, oddities),
        ],
        problems=[*_empty(splits, examples if tokens else {})],
        examples=examples,
    )


def _encoded(
    name: str, records: Sequence[Record], tokens: Tokens | None, encode: Encode
) -> tuple[list[Example], Truncation | None]:
    """The split's examples and what was cut of them; the tokenizer's own count is left as it was."""
    if tokens is None:
        return [], None
    before, tokens.truncation = tokens.truncation, Truncation()
    try:
        examples = []
        for number, record in enumerate(records, start=1):
            try:
                example = encode(record, tokens)
            except ValueError as error:
                raise ValueError(f"data.{name}, record {number}: {error}") from error
            if example is not None:
                examples.append(example)
        return examples, tokens.truncation
    finally:
        tokens.truncation = before


def _lengths(examples: Iterable[Example], is_encoder_decoder: bool) -> tuple[list[int], list[int]]:
    """Tokens without and with loss of each sequence that has any with."""
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
    """What the record teaches to say, if one answer does."""
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
    """What the record's answer is given to; of a chat, all before its last assistant turn."""
    if not isinstance(record, Chat):
        return record.prompt
    last = max(i for i, message in enumerate(record.messages) if message.role == "assistant")
    return record.messages[:last]


def _key(text: Text | None) -> str:
    """Text for comparison: white space and case don't count."""
    if isinstance(text, tuple):
        text = "\n".join(f"{message.role}: {message.content}" for message in text if isinstance(message, Message))
    return " ".join((text or "").split()).casefold()


def _labels(records: Sequence[Record]) -> dict[str, int] | None:
    """Counts of completions that look like classes: at most 20 different ones, short, none of them alone."""
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
    conflicting = [prompt for prompt, said in answers.items() if len(said) > 1]
    return Found(len(conflicting), [texts[prompt] for prompt in conflicting[:NUM_SHOWN]])


def _oddities(train: Sequence[Record]) -> dict[str, int]:
    texts = [(record, str(answer)) for record in train if isinstance(answer := answer_of(record), str)]
    found = {
        "answers with white space at an end": sum(text != text.strip() for record, text in texts),
        "answers with a replacement character (�), the mark of a wrong encoding": sum(
            "\ufffd" in text for _, text in texts
        ),
        "chats that end in a user turn, which teaches nothing": sum(
            isinstance(record, Chat) and record.messages[-1].role != "assistant" for record in train
        ),
    }
    return {what: count for what, count in found.items() if count}


def _cut_warnings(facts: dict[str, SplitFacts]) -> Iterable[str]:
    for name, split in facts.items():
        if (cut := split.truncation) is None or not cut.records:
            continue
        if cut.cut > MUCH_CUT * cut.records:
            lost = f"{cut.label_tokens_lost / max(cut.label_tokens, 1):.0%} of the tokens to learn are lost"
            yield (
                f"{name}: {cut.cut} of {cut.records} sequences ({cut.cut / cut.records:.0%}) are cut, {lost}; "
                f"the longest has {cut.longest_tokens} tokens: shorten the records, raise data.max_tokens, or take "
                "a base of longer context"
            )
        if cut.dropped:
            yield f"{name}: {cut.dropped} of {cut.records} sequences are dropped: no answer is left of them"


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
            yield f"{name} has skewed labels, {rare!r} {share:.1%}: accuracy says little, report the F1 of {rare!r}"
        unknown = sorted(set(split.labels or ()) - set(train))
        if unknown:
            yield f"{name} has labels that train never shows: {', '.join(map(repr, unknown[:NUM_SHOWN]))}"


def _record_warnings(
    splits: Splits, duplicates: int, leaked: dict[str, Found], conflicts: Found, oddities: dict[str, int]
) -> Iterable[str]:
    for name, found in leaked.items():
        total = len(getattr(splits, name))
        yield f"{found.count} of {total} {name} records stand in train too, so {name} looks too good: {_list(found)}"
    for name, records in splits.items():
        if name != "train" and len(records) < SMALL_EVAL:
            yield f"{name} has {len(records)} records: intervals will be wide; {SMALL_EVAL} is little, 200 is good"
    if conflicts.count:
        yield f"{conflicts.count} of train's prompts have answers that differ: {_list(conflicts)}"
    if duplicates:
        yield f"train repeats {duplicates} of its records"
    yield from (f"{what}: {count} in train" for what, count in oddities.items())
    reasoned = [record for record in splits.train if isinstance(record, Rationale)]
    for key, lacking in (
        ("label (output_text)", sum(record.label is None for record in reasoned)),
        ("rationale", sum(record.rationale is None for record in reasoned)),
    ):
        if lacking:
            yield f"{lacking} of {len(reasoned)} train records have no {key}; jobs/annotate.py lets a teacher write it"


def _empty(splits: Splits, examples: dict[str, list[Example]]) -> Iterable[str]:
    for name, records in splits.items():
        labelled = [record for record in records if not isinstance(record, Rationale) or record.label is not None]
        if name != "train" and not labelled:
            yield f"no record of {name} has a label (output_text), so no answer can be judged"
        if name in examples and not examples[name]:
            yield f"nothing is left of {name} after cutting"


def _short(text: Text) -> str:
    """The end of a prompt, where it mostly differs."""
    words = text if isinstance(text, str) else (text[-1].content if text else "")
    words = " ".join(words.split())
    return words if len(words) <= 60 else f"…{words[-59:]}"


def _list(found: Found) -> str:
    return ", ".join(map(repr, found.first)) + (" …" if found.count > len(found.first) else "")
