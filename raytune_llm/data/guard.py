"""General prompts on which a tuned model is compared with its base: does it still answer them as the base does?

The embedded ones are of many kinds, facts, arithmetic, rewriting, lists, code, small talk, requests to refuse, other
languages, in such an order that the first few are as mixed as all. data.guard names others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raytune_llm.data.files import read_records
from raytune_llm.data.question import question
from raytune_llm.data.reading.problems import DataError
from raytune_llm.data.reading.sources import Locations
from raytune_llm.data.records import Chat, Message, Preference, Prompt, Record, Supervised, Text
from raytune_llm.data.tokenizing.template import PLAIN_TEMPLATE
from raytune_llm.data.tokenizing.tokens import Tokens

GENERAL = Path(__file__).with_name("general_prompts.jsonl")
KEY = "data.guard"


def guard_prompts(locations: Locations | None, tokens: Tokens) -> list[Text]:
    """The prompts at these locations, each once, in their order; None = the embedded ones, as a user's turns where the
    base has a chat template of its own.

    Raises:
        DataError: as read_records does, or no record has a prompt.
    """
    if locations is not None:
        return _own(locations)
    prompts = [record.prompt for record in read_records(str(GENERAL), KEY, (Prompt,))]
    is_chat = PLAIN_TEMPLATE not in (tokens.tokenizer.chat_template or PLAIN_TEMPLATE)
    return [(Message("user", prompt),) if is_chat else prompt for prompt in prompts]


def _own(locations: Locations) -> list[Text]:
    found = [_prompt(record) for record in _records(locations)]
    prompts = list(dict.fromkeys(prompt for prompt in found if prompt is not None))
    if not prompts:
        raise DataError([f"{KEY}: none of its {len(found)} records has a prompt and an answer in words"], 1)
    return prompts


def _records(locations: Locations) -> Sequence[Record]:
    """Prompts without answers, or records that have them: of two readings the one that finds no problem, or fewer."""
    try:
        return read_records(locations, KEY, (Prompt,))
    except DataError as error:
        as_prompts = error
    try:
        return read_records(locations, KEY, (Supervised, Chat, Preference))
    except DataError as error:
        raise min(as_prompts, error, key=lambda found: found.total) from None


def _prompt(record: Record) -> Text | None:
    """Without the record's own answer."""
    if isinstance(record, Prompt):
        return record.prompt
    asked = question(record)
    return None if asked is None else asked[0]
