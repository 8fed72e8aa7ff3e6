"""The judging itself: pairs become conversations in both orders, those that aren't cached are sent, replies are read.

At most `concurrent_requests` are in flight. A reply that can't be read is asked for again, a bounded number of times. A
request that fails is left without a verdict; too many of them end the judging, with what there is by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from raytune_llm.data.findings import many
from raytune_llm.evaluation.judges.base import JudgeSession
from raytune_llm.evaluation.judging.cache import ReplyCache, key_of
from raytune_llm.evaluation.judging.pairs import Choice, Judged, Pair, read_choice
from raytune_llm.models.openai_client import Completion, Messages, ServerError

CHARACTERS_PER_TOKEN = 4
"""Of most texts, roughly: for the estimate before any request."""
BATCH = 16
"""Replies that are stored together: what a kill may lose."""


@dataclass
class Usage:
    """What was asked, and what it took."""

    num_requests: int = 0
    num_cached: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    usd: float | None = None
    """None where a price isn't known."""


@dataclass(frozen=True)
class Judgement:
    """What a judge says of all pairs."""

    judged: list[Judged]
    usage: Usage
    malformed: list[str] = field(default_factory=list)
    """The last replies of conversations whose verdict couldn't be read."""
    failures: list[str] = field(default_factory=list)
    """Why requests failed."""
    ended: str | None = None
    """Why it ended before all were asked."""


class Judging:
    """Pairs on their way through a judge."""

    def __init__(self, session: JudgeSession, pairs: Sequence[Pair], cache: ReplyCache) -> None:
        """Reads the cache; sends nothing. Raises InputError for a damaged cache."""
        self._session, self._pairs, self._cache = session, pairs, cache
        self._known = cache.read()
        self._orders = [None if pair.is_identical else self._conversations(pair) for pair in pairs]
        both = [messages for orders in self._orders if orders is not None for messages in orders]
        self._roots = {key_of(messages): messages for messages in both}
        self._usage = Usage()
        self._choices: dict[str, Choice] = {}
        self._malformed: dict[str, str] = {}
        self._failures: dict[str, str] = {}

    @property
    def num_asked(self) -> int:
        """Different conversations, cached or not."""
        return len(self._roots)

    def estimate(self) -> Usage:
        """What the first attempts may take: prompt tokens by the texts' length, replies of the longest allowed."""
        new = [messages for key, messages in self._roots.items() if key not in self._known]
        num_prompt_tokens = sum(len(turn["content"]) for messages in new for turn in messages) // CHARACTERS_PER_TOKEN
        num_completion_tokens = len(new) * self._session.max_new_tokens
        usd = self._session.prices.usd(num_prompt_tokens, num_completion_tokens)
        return Usage(len(new), len(self._roots) - len(new), num_prompt_tokens, num_completion_tokens, usd)

    def run(self) -> Judgement:
        """Ask, as often as it takes."""
        waiting: Mapping[str, Messages] = self._roots
        for _ in range(self._session.rules.attempts):
            waiting = self._attempt(waiting)
        self._usage.usd = self._session.prices.usd(self._usage.num_prompt_tokens, self._usage.num_completion_tokens)
        judged = [self._judged(*both) for both in zip(self._pairs, self._orders, strict=True)]
        failures = [*self._failures.values()]
        unread = [self._malformed[root] for root in waiting]
        return Judgement(judged, self._usage, unread, failures, self._why_ended())

    def _attempt(self, waiting: Mapping[str, Messages]) -> dict[str, Messages]:
        """Ask each conversation; those to be asked again, by the key of their first form."""
        replies = self._replies({key_of(messages): messages for messages in waiting.values()})
        again: dict[str, Messages] = {}
        for root, messages in waiting.items():
            reply = replies.get(key_of(messages))
            if reply is None:
                continue
            choice = read_choice(reply.text)
            if choice is not None:
                self._choices[root] = choice
                continue
            self._malformed[root] = reply.text
            turns = ("assistant", reply.text or "(empty)"), ("user", self._session.rules.retry)
            again[root] = [*messages, *({"role": role, "content": content} for role, content in turns)]
        return again

    def _replies(self, wanted: Mapping[str, Messages]) -> dict[str, Completion]:
        """Replies by key, cached and new; without those that failed or were not sent after too many failures."""
        found = {key: self._known[key] for key in wanted if key in self._known}
        self._usage.num_cached += len(found)
        new: dict[str, Completion] = {}
        threads = ThreadPoolExecutor(self._session.concurrent_requests)
        try:
            if self._why_ended() is not None:
                return found
            sent = {
                threads.submit(self._session.ask, messages): key for key, messages in wanted.items() if key not in found
            }
            for future in as_completed(sent):
                try:
                    reply = future.result()
                except CancelledError:
                    continue
                except ServerError as error:
                    self._failures[sent[future]] = str(error)
                    if self._why_ended() is not None:
                        for other in sent:
                            other.cancel()
                    continue
                self._count(reply)
                found[sent[future]] = new[sent[future]] = reply
                if len(new) >= BATCH:
                    self._cache.add(new)
                    new = {}
        finally:
            threads.shutdown(cancel_futures=True)
            self._cache.add(new)
        return found

    def _count(self, reply: Completion) -> None:
        self._usage.num_requests += 1
        self._usage.num_prompt_tokens += reply.num_prompt_tokens
        self._usage.num_completion_tokens += reply.num_completion_tokens

    def _why_ended(self) -> str | None:
        """A sentence once more requests failed than are accepted."""
        if len(self._failures) <= self._session.rules.max_failures:
            return None
        last = list(self._failures.values())[-1]
        return (
            f"{many(len(self._failures), 'request')} failed, more than evaluation.judge.rules.max_failures="
            f"{self._session.rules.max_failures}; the last: {last}"
        )

    def _conversations(self, pair: Pair) -> tuple[Messages, Messages]:
        messages = self._session.rules.messages
        return (
            messages(pair.prompt, pair.reference, pair.answer, pair.other_answer),
            messages(pair.prompt, pair.reference, pair.other_answer, pair.answer),
        )

    def _judged(self, pair: Pair, orders: tuple[Messages, Messages] | None) -> Judged:
        if orders is None:
            return Judged(pair, (Choice.tie, Choice.tie), asked=False)
        first, second = (self._choices.get(key_of(messages)) for messages in orders)
        return Judged(pair, (first, second))
