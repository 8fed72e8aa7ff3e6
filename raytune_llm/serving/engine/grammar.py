"""Answers whose text is an instance of a JSON Schema: llguidance says which tokens may come next.

https://github.com/guidance-ai/llguidance computes that in microseconds by an Earley parser over lazily built lexer
automata. What it doesn't know it refuses, so no keyword of a schema is ignored. A hostile schema could take its
compiler any time and memory; so each new schema is first compiled in a process of its own, within limits. In decoding
each step is bounded too, and an answer whose pattern exceeds that ends with an error. White space between the parts of
a text may be of any length, which small models fall for; after some of it something else must follow.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from raytune_llm.data.tokenizing.per_tokenizer import per_tokenizer
from raytune_llm.errors import InputError
from raytune_llm.serving.engine import grammar_check
from raytune_llm.serving.engine.detokenize import backend_of

LONGEST_SCHEMA = 100_000
"""Characters of a schema's JSON text."""
CHECK_SECONDS = 20.0
"""Wall-clock time that a check may take, with a process's start on a loaded machine."""
LONGEST_SPACE = 64
"""Characters of white space after which something else must follow, where the schema allows that."""
MOST_CHECKED = 4096
_checking = threading.Lock()
"""One new schema is checked at a time; known ones don't wait."""
_checked: OrderedDict[bytes, str] = OrderedDict()
"""Why the last schemas were refused, "" for those that weren't; by their SHA-256."""


class Grammar:
    """What one answer's next token may be. `allowed` and `add` are called in turn."""

    def __init__(self, matcher: Any, tokenizer: Any, stop_ids: Sequence[int]) -> None:
        """matcher and tokenizer: llguidance's."""
        self._matcher, self._eos, self._stop_ids = matcher, tokenizer.eos_token, frozenset(stop_ids)
        self._spaces = _spaces(tokenizer)
        self._num_spaces = 0
        """White space that the text ends with, characters."""
        self.error: InputError | None = None
        """Why the answer can't continue."""

    def allowed(self, num_tokens: int) -> np.ndarray | None:
        """Which tokens of the vocabulary may come next, (num_tokens,), among them the end tokens where the text is
        complete; None after an error."""
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self.error = self.error or _too_complex(self._matcher)
            return None
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")[:num_tokens].astype(bool)
        allowed = np.zeros(num_tokens, dtype=bool)
        allowed[: len(bits)] = bits
        allowed[[token for token in (self._eos, *self._stop_ids) if token < num_tokens]] = False
        if self._matcher.is_accepting():
            allowed[[token for token in self._stop_ids if token < num_tokens]] = True
        if self._num_spaces >= LONGEST_SPACE:
            others = allowed.copy()
            others[[token for token in self._spaces if token < num_tokens]] = False
            allowed = others if others.any() else allowed
        return allowed

    def add(self, token: int) -> None:
        """The token that was sampled."""
        self._num_spaces = self._num_spaces + self._spaces[token] if token in self._spaces else 0
        if token not in self._stop_ids and not self._matcher.consume_token(token):
            self.error = self.error or _too_complex(self._matcher)


def start_grammar(tokenizer: Any, schema: str, stop_ids: Sequence[int]) -> Grammar:
    """For one answer that begins with its next token; fast after `compile_grammar`, and raises what that does."""
    return Grammar(compile_grammar(tokenizer, schema).deep_copy(), _llguidance_tokenizer(tokenizer), stop_ids)


def is_known(schema: str) -> bool:
    """Whether it has been checked, so that `start_grammar` is fast."""
    return _key(schema) in _checked


def compile_grammar(tokenizer: Any, schema: str) -> Any:
    """llguidance's matcher before the first token; the last ones used are cached. Call it from a thread: a new schema
    takes a tenth of a second, a hostile one seconds, a new tokenizer a second more.

    Args:
        schema: JSON text of a JSON Schema.

    Raises:
        InputError: the schema isn't valid, has a keyword that llguidance doesn't know, allows nothing, or takes too
            much time or memory; or the tokenizer has no tokens that llguidance can read.
    """
    if len(schema) > LONGEST_SCHEMA:
        raise InputError(f"the JSON schema has {len(schema)} characters; at most {LONGEST_SCHEMA} are allowed")
    if any("\ud800" <= character <= "\udfff" for character in schema):
        raise InputError("the JSON schema is refused: it contains a lone surrogate, which is no character")
    llguidance_tokenizer = _llguidance_tokenizer(tokenizer)
    reason = _refusal(schema)
    if reason:
        raise InputError(f"the JSON schema is refused: {reason}")
    matcher = _matcher(llguidance_tokenizer, schema)
    if _fails(matcher):  # copies share their lexer, and an answer may have used up its states
        _matcher.cache_clear()
        matcher = _matcher(llguidance_tokenizer, schema)
    if _fails(matcher):
        raise InputError(f"the JSON schema is refused: {_error(matcher)}")
    return matcher


def _refusal(schema: str) -> str:
    """Why the schema can't be compiled, found by a process that may take only so much time and memory; "" if it can."""
    key = _key(schema)
    known = _checked.get(key)
    if known is not None:
        return known
    with _checking:
        found = _checked.get(key)
        if found is None:
            found = _checked[key] = _check(schema)
            if len(_checked) > MOST_CHECKED:
                _checked.popitem(last=False)
        return found


def _key(schema: str) -> bytes:
    return hashlib.sha256(schema.encode(errors="surrogatepass")).digest()


def _check(schema: str) -> str:
    command = [sys.executable, "-P", grammar_check.__file__]
    try:
        done = subprocess.run(command, input=schema.encode(), capture_output=True, timeout=CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        return "compiling it takes too long; simplify its patterns, ranges and multipleOf"
    if done.returncode == 0:
        return done.stdout.decode(errors="replace").strip()
    return "compiling it takes too much time or memory; simplify its patterns, ranges, multipleOf and minItems"


@functools.lru_cache(maxsize=32)
def _matcher(llguidance_tokenizer: Any, schema: str) -> Any:
    return grammar_check.matcher(schema, llguidance_tokenizer)


def _fails(matcher: Any) -> bool:
    """Whether it has no first token."""
    first = matcher.deep_copy()
    first.compute_bitmask()
    return bool(first.is_error())


def _error(matcher: Any) -> str:
    return grammar_check.error(matcher)


@per_tokenizer
def _llguidance_tokenizer(tokenizer: Any) -> Any:
    """One for all tokenizers with the same tokens, which the versions of a base are."""
    backend = backend_of(tokenizer)
    if backend is None or tokenizer.eos_token_id is None:
        raise InputError("a JSON schema needs a tokenizer of the tokenizers library with an end token; this has none")
    backend = copy.copy(backend)
    backend.no_padding()
    backend.no_truncation()
    return _read_tokenizer(backend.to_str(), tokenizer.eos_token_id)


@functools.lru_cache(maxsize=4)
def _read_tokenizer(text: str, eos: int) -> Any:
    from llguidance import LLTokenizer

    try:
        return LLTokenizer(text, eos_token=eos)
    except Exception as error:  # it has no narrower class
        raise InputError(f"a JSON schema can't be used with this model's tokenizer: {error}") from error


@functools.lru_cache(maxsize=4)
def _spaces(llguidance_tokenizer: Any) -> dict[int, int]:
    """Tokens of white space and their lengths."""
    texts = ((token, llguidance_tokenizer.decode_bytes([token])) for token in range(llguidance_tokenizer.vocab_size))
    return {token: len(text) for token, text in texts if text.isspace()}


def _too_complex(matcher: Any) -> InputError:
    return InputError(
        f"the answer can't continue by its JSON schema: {_error(matcher)}; simplify the patterns in the schema"
    )
