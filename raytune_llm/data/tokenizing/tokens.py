"""From text to token sequences: what a model sees, what carries loss, what is cut; the same in training and generation.

Plain text, causal bases:      [BOS] prompt "\\n" | completion EOS
Conversations, causal bases:   the chat template's text | each answer, from its generation prompt to its end token
Text alone, causal bases:      [BOS] | text EOS
Encoder-decoder bases:         prompt | completion EOS, each with the special tokens that the tokenizer adds

Loss is on the part after the bar. BOS occurs once, where the tokenizer adds it; in conversations, where the template
does. Whitespace around an assistant's turn is dropped. Tools are the template's
matter. Leaves out images.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raytune_llm.data.examples import IGNORED, TokenSequence
from raytune_llm.data.records import Message, Text
from raytune_llm.data.tokenizing.rendering import render
from raytune_llm.data.tokenizing.template import added_tokens, answer_spans, end_of_turn, require_eos, template_error
from raytune_llm.data.tokenizing.token_ids import begin_of_part, ids_and_offsets, splitting_tokens, token_ids
from raytune_llm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Truncation:
    """Counts of truncated sequences."""

    records: int = 0
    """Sequences encoded; a preference has two."""
    cut: int = 0
    """Sequences that lost anything."""
    prompts_cut: int = 0
    completions_cut: int = 0
    """Sequences that lost tokens with loss."""
    dropped: int = 0
    """Sequences that lost all of them."""
    label_tokens: int = 0
    """Tokens with loss, before cutting."""
    label_tokens_lost: int = 0
    longest_tokens: int = 0
    """Length of the longest sequence before cutting; for encoder-decoder bases, of either side."""

    def count(self, *, tokens: int, labels: int, prompt_lost: int, labels_lost: int) -> bool:
        """Count one sequence; whether a label is left of it."""
        self.records += 1
        self.cut += prompt_lost > 0 or labels_lost > 0
        self.prompts_cut += prompt_lost > 0
        self.completions_cut += labels_lost > 0
        self.dropped += 0 < labels == labels_lost
        self.label_tokens += labels
        self.label_tokens_lost += labels_lost
        self.longest_tokens = max(self.longest_tokens, tokens)
        return labels_lost < labels


class Tokens:
    """A tokenizer with the project's rules. It must have an EOS token and, for conversations, a chat template.

    Raises:
        InputError: there is no EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int | None, is_encoder_decoder: bool) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = sys.maxsize if max_tokens is None else max_tokens
        """Longest sequence, for encoder-decoder bases of either side; given as None, nothing is cut."""
        self.is_encoder_decoder = is_encoder_decoder
        self.truncation = Truncation()
        self._eos = require_eos(tokenizer)
        self._prefix, self._suffix = added_tokens(tokenizer)
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted(special, key=lambda token: (-len(token), token))
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._splitting, self._end_of_turn = splitting_tokens(tokenizer), end_of_turn(tokenizer)

    @contextmanager
    def counting(self) -> Iterator[Truncation]:
        """A count of what is encoded inside; the count so far is then as it was before."""
        before, self.truncation = self.truncation, Truncation()
        try:
            yield self.truncation
        finally:
            self.truncation = before

    def completion(self, prompt: Text, completion: Text) -> TokenSequence | None:
        """A prompt, cut at its start where it is too long, and a completion with loss on it and on EOS.

        A conversational prompt makes it a conversation with loss on the completion's turns only; completion may then be
        text or turns. None when truncation leaves no label.
        """
        if isinstance(prompt, str):
            if not isinstance(completion, str):
                raise InputError("a plain prompt takes a plain completion; give the prompt as messages too")
            return self._pair(self.prompt(prompt), self._answer(completion))
        answer = (Message("assistant", completion),) if isinstance(completion, str) else completion
        return self._conversation((*prompt, *answer), first=len(prompt))

    def text(self, text: str) -> TokenSequence:
        """A text to learn whole, with EOS, cut at its end. Loss is on all of it but the first token, which nothing
        comes before, where the tokenizer adds no BOS; encoder-decoder bases learn it from an empty source."""
        answer = self._answer(text)
        if self.is_encoder_decoder:
            return self._pair(self._prompt_ids("") or [self._eos], answer)
        begin = self._prefix or answer[:1]
        learned = answer[len(begin) :] if answer[: len(begin)] == begin else answer
        return self._pair(begin, learned or [self._eos])

    def judged(self, prompt: Text, completion: Text) -> TokenSequence | None:
        """The same prompt and completion as one sequence that a reward model reads to the end of the answer.

        Encoder-decoder bases: both in input_ids, the last token EOS even where the completion was cut. None when
        truncation leaves nothing of the completion.
        """
        sequence = self.completion(prompt, completion)
        if sequence is None:
            return None
        if not self.is_encoder_decoder:
            end = max(place for place, label in enumerate(sequence.labels) if label != IGNORED) + 1
            return TokenSequence(sequence.input_ids[:end], sequence.labels[:end])
        read = [*sequence.input_ids, *sequence.labels[:-1], self._eos]
        return TokenSequence(read, [IGNORED] * len(sequence.input_ids) + sequence.labels)

    def conversation(self, messages: Sequence[Message]) -> TokenSequence | None:
        """A conversation with loss on each assistant turn to learn and its end, cut at its end where it is too long.

        Turns after the last of these are left out. Encoder-decoder bases: the last assistant turn is the target.
        None when truncation leaves no label.

        Raises:
            InputError: the chat template can't be trained on (see the module), or refuses these turns.
        """
        return self._conversation(tuple(messages), first=0)

    def prompt(self, prompt: Text, *, max_new_tokens: int | None = None) -> list[int]:
        """What generation is fed: the prompt as it was trained on, whole.

        With max_new_tokens, short enough that so many more tokens fit into max_tokens (encoder-decoder bases: short
        enough for max_tokens): a conversation loses its oldest exchanges, plain text its beginning.
        """
        return self._fitted(prompt, max_new_tokens)[0]

    def sampled_prompt(self, prompt: Text, *, max_new_tokens: int) -> list[int]:
        """`prompt` with max_new_tokens, counted in `truncation` as a sequence without labels; its length before cutting
        includes the tokens that are to be sampled."""
        ids, length = self._fitted(prompt, max_new_tokens)
        reserved = 0 if self.is_encoder_decoder else max_new_tokens
        self.truncation.count(tokens=length + reserved, labels=0, prompt_lost=length - len(ids), labels_lost=0)
        return ids

    def control_tokens_in(self, text: str) -> list[str]:
        """The tokenizer's special tokens that are in a record's own text, each once, in their order. They are encoded
        as control tokens, which begin and end turns."""
        return list(dict.fromkeys(self._control.findall(text)))

    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: EOS and those the chat template ends a turn with, if it can be trained on."""
        ids = {self._eos}
        turns = tuple(Message(role, word) for role, word in zip(("user", "assistant") * 2, "abcd", strict=True))
        if self.tokenizer.chat_template is not None:
            try:
                tokens, labels = self._labelled(turns, first=0)
            except InputError:
                return sorted(ids)
            after = [*labels[1:], IGNORED]
            ids |= {
                token
                for token, label, following in zip(tokens, labels, after, strict=True)
                if following == IGNORED != label
            }
        return sorted(ids)

    def _fitted(self, prompt: Text, max_new_tokens: int | None) -> tuple[list[int], int]:
        """A prompt's ids, short enough, and how many there were."""
        ids = self._prompt_ids(prompt)
        if max_new_tokens is None:
            return ids, len(ids)
        length, room = len(ids), self.max_tokens - (0 if self.is_encoder_decoder else max_new_tokens)
        room = max(room, 1 + len(self._prefix))
        while len(ids) > room and not isinstance(prompt, str) and (shorter := _without_oldest(prompt)) is not None:
            prompt = shorter
            ids = self._prompt_ids(prompt)
        return self._cut_start(ids, room), length

    def _encode(self, text: str) -> list[int]:
        return token_ids(self.tokenizer, text)

    def _prompt_ids(self, prompt: Text) -> list[int]:
        if not isinstance(prompt, str):
            ids = self._encode(render(self.tokenizer, stripped(prompt), generation_prompt=True))
            return self._with_added(ids) if self.is_encoder_decoder else ids
        if self.is_encoder_decoder:
            return self._with_added(self._encode(prompt))
        ids = self._encode(prompt + "\n")
        return ids if ids[: len(self._prefix)] == self._prefix else self._prefix + ids

    def _with_added(self, ids: list[int]) -> list[int]:
        """The ids between the special tokens that the tokenizer adds, each once."""
        ids = ids if ids[: len(self._prefix)] == self._prefix else self._prefix + ids
        return ids if not self._suffix or ids[-len(self._suffix) :] == self._suffix else ids + self._suffix

    def _cut_start(self, ids: list[int], room: int) -> list[int]:
        """At most `room` tokens: the special ones at the start stay, the text loses its beginning."""
        if len(ids) <= room:
            return ids
        kept = self._prefix if ids[: len(self._prefix)] == self._prefix else []
        return kept + ids[len(ids) - (room - len(kept)) :]

    def _answer(self, text: str) -> list[int]:
        """A text to learn, with EOS at its end, once."""
        ids = self._encode(text)
        if self.is_encoder_decoder:
            ids = self._with_added(ids)
        return ids if ids[-1:] == [self._eos] else [*ids, self._eos]

    def _pair(self, prompt: list[int], answer: list[int]) -> TokenSequence:
        """Plain text: the answer survives whole if it can, the prompt is cut for it."""
        if self.is_encoder_decoder:
            source, kept = self._cut_start(prompt, self.max_tokens), answer[: self.max_tokens]
            longest = max(len(prompt), len(answer))
        else:
            kept = answer[: self.max_tokens - max(len(self._prefix), 1)]
            source, longest = self._cut_start(prompt, self.max_tokens - len(kept)), len(prompt) + len(answer)
        self.truncation.count(
            tokens=longest,
            labels=len(answer),
            prompt_lost=len(prompt) - len(source),
            labels_lost=len(answer) - len(kept),
        )
        if self.is_encoder_decoder:
            return TokenSequence(source, kept)
        return TokenSequence(source + kept, [IGNORED] * len(source) + kept)

    def _conversation(self, messages: tuple[Message, ...], first: int) -> TokenSequence | None:
        last = max((i for i, turn in enumerate(messages) if turn.role == "assistant" and turn.learn), default=-1)
        if last < first:
            raise InputError("the conversation has no assistant turn to learn")
        messages = stripped(messages[: last + 1])
        if self.is_encoder_decoder:
            if messages[last].tool_calls:
                raise InputError("an encoder-decoder base can't learn an answer that calls tools; take a causal base")
            return self._pair(self.prompt(messages[:last]), self._answer(messages[last].content))
        ids, labels = self._labelled(messages, first)
        lost = labels[self.max_tokens :]
        num_lost, num_labels = (len(found) - found.count(IGNORED) for found in (lost, labels))
        some_left = self.truncation.count(
            tokens=len(ids), labels=num_labels, prompt_lost=len(lost) - num_lost, labels_lost=num_lost
        )
        return TokenSequence(ids[: self.max_tokens], labels[: self.max_tokens]) if some_left else None

    def _labelled(self, messages: tuple[Message, ...], first: int) -> tuple[list[int], list[int]]:
        """Ids and labels of the whole conversation, with loss on the learned assistant turns from `first` on."""
        text = render(self.tokenizer, messages, generation_prompt=False)
        turns = [i for i, turn in enumerate(messages) if i >= first and turn.role == "assistant" and turn.learn]
        spans = answer_spans(self.tokenizer, text, messages, turns, self._end_of_turn)
        ids, offsets = ids_and_offsets(self.tokenizer, text)
        labels, position = [IGNORED] * len(ids), 0
        for start, end in spans:
            while position < len(ids) and offsets[position][0] < start:
                position += 1
            prompted = position
            while position < len(ids) and offsets[position][0] < end:
                labels[position] = ids[position]
                position += 1
            if prompted and offsets[prompted - 1][1] > start:
                raise template_error("one token spans the end of a prompt and the answer", text, start)
        apart = begin_of_part(self._splitting, text, ids[:prompted], offsets)
        begin = offsets[apart][0] if apart else 0
        if self._encode(text[begin : spans[-1][0]]) != ids[apart:prompted]:
            raise template_error("the prompt is tokenized differently with its answer than without", text, spans[-1][0])
        return ids, labels


def stripped(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The turns without the white space around those of the assistant."""
    return tuple(
        replace(turn, content=bare)
        if turn.role == "assistant" and (bare := turn.content.strip()) != turn.content
        else turn
        for turn in messages
    )


def _without_oldest(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """The conversation without its first exchange: it then begins, after the system turn, with the next user turn. Its
    tools stay."""
    system = messages[:1] if messages[0].role == "system" else ()
    starts = [i for i, message in enumerate(messages) if message.role == "user" and i > len(system)]
    if not starts:
        return None
    kept = (*system, *messages[starts[0] :])
    return (replace(kept[0], tools=messages[0].tools), *kept[1:])
