"""What is cut off, and what of it matters: the instruction, the answer's place in the context, the tokens to learn.

Plain prompts lose their beginning, where the instruction mostly is; conversations lose their end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from raytune_llm.data.doctor.instruction import Instruction
from raytune_llm.data.doctor.view import Check, Hits, Seen, View, quoted, share
from raytune_llm.data.examples import IGNORED, Example
from raytune_llm.data.findings import Finding, Severity, many
from raytune_llm.data.parts import prompt_of, text_key
from raytune_llm.data.records import PlainText, Supervised
from raytune_llm.data.tokenizing.tokens import Truncation

MUCH_CUT = 0.05
LONGEST_INSTRUCTION = 80
"""Characters of it that are shown."""
MUCH_LOST = 0.5
"""A job is refused when more than this share of its records, or of the tokens to learn, is lost."""

LITTLE_KEPT, FEW_KEPT = 0.1, 16
"""Next to nothing is kept of a prompt: less than this share of its tokens, or at most so many and less than half."""


class Cuts(Check):
    """Counts records by what they lose."""

    def __init__(self, view: View, instruction: Instruction) -> None:
        super().__init__(view)
        self._instruction = instruction
        self._lost = Counter[str]()
        self._beginnings, self._ends, self._answers, self._dropped = Hits(), Hits(), Hits(), Hits()
        self._gone, self._gone_kept, self._gone_whole = Hits(), 0, 0

    def see(self, seen: Seen) -> None:
        view = self._view
        if view.tokens is None or view.encoded is None or not view.encoded.truncation.cut:
            return
        if seen.example is None:
            self._dropped.add(seen.index, seen.prompt)
        elif isinstance(seen.record, PlainText):
            return  # it has no prompt
        elif seen.index % view.stride == 0 and self._may_be_cut(seen.example):
            if isinstance(prompt_of(seen.record), str):
                self._see_plain(seen, seen.example)
            else:
                self._ends.add(seen.index, seen.prompt)
                if view.encoded.truncation.label_tokens == 0:
                    kept, whole = _kept_prompt(seen.example, view.is_encoder_decoder), prompt_of(seen.record)
                    self._see_gone(seen, len(kept), len(view.tokens.prompt(whole)))

    def merge(self, later: Cuts) -> None:
        self._lost.update(later._lost)
        self._beginnings.merge(later._beginnings)
        self._ends.merge(later._ends)
        self._answers.merge(later._answers)
        self._dropped.merge(later._dropped)
        self._gone.merge(later._gone)
        self._gone_kept += later._gone_kept
        self._gone_whole += later._gone_whole

    def _may_be_cut(self, example: Example) -> bool:
        """Whether an example is as long as it may be; prompts that are sampled from leave room for a completion."""
        assert self._view.tokens is not None and self._view.encoded is not None
        is_sampled = self._view.encoded.truncation.label_tokens == 0
        return is_sampled or _is_full(example, self._view.tokens.max_tokens)

    def _see_plain(self, seen: Seen, example: Example) -> None:
        """Compare what is kept of a prompt with the whole of it."""
        assert self._view.tokens is not None
        kept, whole = _kept_prompt(example, self._view.is_encoder_decoder), self._view.tokens.prompt(seen.prompt)
        if len(kept) >= len(whole):
            return
        text = text_key(str(self._view.tokens.tokenizer.decode(kept, skip_special_tokens=True)))
        self._see_gone(seen, len(kept), len(whole), text)
        start = self._instruction.start_of(seen.prompt)
        if not start or text_key(start) not in text:
            self._beginnings.add(seen.index, seen.prompt)
            self._lost.update([start] if start else [])
        if isinstance(seen.record, Supervised):
            answer = text_key(seen.answer)
            if answer in text_key(seen.prompt) and answer not in text:
                self._answers.add(seen.index, seen.answer or "")

    def _see_gone(self, seen: Seen, kept: int, whole: int, text: str | None = None) -> None:
        """Count a prompt cut from `whole` to `kept` tokens, if that is next to nothing, or if these say nothing of its
        own: `text` is empty, or what all prompts end with."""
        is_common = text is not None and text_key(self._instruction.end_of(seen.prompt)).endswith(text)
        if kept < LITTLE_KEPT * whole or (kept <= FEW_KEPT and kept < whole / 2) or (kept < whole and is_common):
            self._gone.add(seen.index, seen.prompt)
            self._gone_kept += kept
            self._gone_whole += whole

    def findings(self) -> Iterator[Finding]:
        cut = None if self._view.encoded is None else self._view.encoded.truncation
        if (
            cut is None or not cut.cut or self._dropped.count == len(self._view.records)
        ):  # nothing_left reports the last
            return
        if self._gone.count > MUCH_LOST * self._num_looked_at:
            yield self._of_gone(cut)
        else:
            yield from self._of_beginnings(cut)
            yield from self._of_answers()
        yield from self._of_labels(cut)
        yield from self._of_dropped(cut)

    @property
    def _num_looked_at(self) -> int:
        return len(range(0, len(self._view.records), self._view.stride))

    def _of_gone(self, cut: Truncation) -> Finding:
        view, count = self._view, self._gone.count
        return Finding(
            "prompts_gone",
            Severity.problem,
            view.name,
            f"{view.name}: {count:,} of {self._num_looked_at:,}{view.of_sample} prompts are cut to next to nothing "
            f"({self._gone_kept / count:.0f} of {self._gone_whole / count:.0f} tokens on average), so a model can't "
            f"know what it is asked: {_remedy(view, cut)}",
            count,
            self._gone.places(view),
        )

    def _of_beginnings(self, cut: Truncation) -> Iterator[Finding]:
        view, count = self._view, self._beginnings.count
        if not count:
            return
        total = self._num_looked_at
        lost = [quoted(start, LONGEST_INSTRUCTION) for start, _ in self._lost.most_common()]
        what = f", the instruction ({lost[0]}{' …' if len(lost) > 1 else ''})" if lost else ""
        yield Finding(
            "prompt_beginning_lost",
            Severity.warning if what or count > MUCH_CUT * total else Severity.note,
            view.name,
            f"{view.name}: {count:,} of {total:,}{view.of_sample} {'loses' if count == 1 else 'lose'} the beginning of "
            f"their prompt{what}: "
            f"{_remedy(view, cut, 'put the instruction last' if what else None)}",
            count,
            self._beginnings.places(view),
        )

    def _of_answers(self) -> Iterator[Finding]:
        view, hits = self._view, self._answers
        if hits.count:
            yield Finding(
                "answer_out_of_context",
                Severity.warning,
                view.name,
                f"{view.name}: {many(hits.count, 'answer')}{view.of_sample} can be read in the whole prompt, but no "
                "longer in what is kept of it: the model would learn to make them up",
                hits.count,
                hits.places(view),
            )

    def _of_labels(self, cut: Truncation) -> Iterator[Finding]:
        view, lost = self._view, cut.label_tokens_lost / max(cut.label_tokens, 1)
        if not cut.completions_cut:
            return
        much = cut.completions_cut > MUCH_CUT * cut.records
        yield Finding(
            "answers_cut",
            Severity.problem if lost > MUCH_LOST else Severity.warning if much else Severity.note,
            view.name,
            f"{view.name}: {cut.completions_cut:,} of {cut.records:,} sequences lose tokens to learn, "
            f"{share(cut.label_tokens_lost, cut.label_tokens)} of all: {_remedy(view, cut)}",
            cut.completions_cut,
            (self._dropped if not self._ends.count else self._ends).places(view),
        )

    def _of_dropped(self, cut: Truncation) -> Iterator[Finding]:
        view, hits = self._view, self._dropped
        if not hits.count:
            return
        some = f"{hits.count:,} of {many(len(view.records), 'record')} {'is' if hits.count == 1 else 'are'}"
        yield Finding(
            "dropped",
            Severity.problem if hits.count > MUCH_LOST * len(view.records) else Severity.warning,
            view.name,
            f"{view.name}: {some} dropped: truncation leaves no answer token: {_remedy(view, cut)}",
            hits.count,
            hits.places(view),
        )


def _remedy(view: View, cut: Truncation, first: str | None = None) -> str:
    """What can be done: a larger data.max_tokens only where the base can take it."""
    assert view.tokens is not None
    allowed, context = view.tokens.max_tokens, view.context_tokens
    longest = max(cut.longest_tokens, view.longest_tokens)
    ways = [first] if first else []
    if context is None or context > allowed:
        enough = longest if context is None else min(longest, context)
        keeps = "keeps all" if enough == longest else f"of {longest:,} needed"
        ways.append(f"set data.max_tokens={enough} (now {allowed}; {keeps})")
        return _either([*ways, "shorten the records"])
    limit = f"the longest has {longest:,} tokens, and {allowed:,} are all that the base can take"
    return f"{limit}; {_either([*ways, 'shorten the records', 'use a base with a longer context'])}"


def _either(ways: Sequence[str]) -> str:
    return " or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)


def _is_full(example: Example, max_tokens: int) -> bool:
    """Whether any sequence is as long as sequences may be, as what was cut is."""
    return any(max(len(one.input_ids), len(one.labels)) >= max_tokens for one in example.values())


def _kept_prompt(example: Example, is_encoder_decoder: bool) -> Sequence[int]:
    """The prompt's tokens in the longest sequence of an example."""
    sequence = max(example.values(), key=lambda one: len(one.input_ids))
    if is_encoder_decoder:
        return sequence.input_ids
    first = next((i for i, label in enumerate(sequence.labels) if label != IGNORED), len(sequence.labels))
    return sequence.input_ids[:first]


def nothing_left(views: Iterable[View]) -> Iterator[Finding]:
    """Splits of which truncation leaves nothing."""
    for view in views:
        if view.encoded is not None and not len(view.encoded.examples):
            text, cut = f"nothing is left of {view.name} after truncation", view.encoded.truncation
            text += f": {_remedy(view, cut)}" if cut.cut and view.tokens is not None else ""
            yield Finding("nothing_left", Severity.problem, view.name, text, len(view.records))
