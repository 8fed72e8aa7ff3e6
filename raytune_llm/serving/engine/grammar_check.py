"""Compiling a JSON Schema for llguidance; run as a file, it says within limits whether that is possible.

The schema comes by stdin; the reason against it, if there is one, goes to stdout. A process that exceeds its processor
time or memory is ended by the system. Imports nothing of this package, so that it starts in a tenth of a second.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

CPU_SECONDS = 4
MEMORY_BYTES = 64 * 2**20
"""More than the process has before it compiles."""
LONGEST_REASON = 500
"""Characters."""
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
"""LLParserLimits; a step's fuel is about 7 ms, and a lexer state up to 2 kB."""
OVERRIDES: Any = {"lenient": False}
"""No keyword of a schema may be ignored, also where its x-guidance allows that."""


def matcher(schema: str, tokenizer: Any) -> Any:
    """llguidance's matcher of a schema's JSON text; it may be in an error state.

    Raises ValueError for text that isn't a schema.
    """
    from llguidance import LLMatcher, LLParserLimits

    found = json.loads(schema)
    if not isinstance(found, dict | bool):
        raise ValueError("it is neither an object nor a boolean")
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=OVERRIDES)
    return LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))


def error(matcher: Any) -> str:
    """Of a matcher in an error state, on one line."""
    lines = [line.strip() for line in matcher.get_error().splitlines()]
    text = _shortened(" ".join(line for line in lines if line and line != "<non-verbose/>"))
    return "it allows no text" if text == "NoExtensionBias" else text


def limit() -> None:
    """Bound this process's time and memory from now on."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        size = int(sizes.read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def refusal(schema: str) -> str:
    """Why a schema can't be compiled, "" if it can."""
    from llguidance import LLTokenizer

    tokenizer = LLTokenizer("byte")
    limit()
    try:
        found = matcher(schema, tokenizer)
    except (ValueError, RecursionError) as problem:
        return _shortened(str(problem))
    if not found.is_error():
        found.compute_bitmask()
    return error(found) if found.is_error() else ""


def _shortened(text: str) -> str:
    """The beginning and the end of a message that may contain the schema."""
    half = LONGEST_REASON // 2
    return text if len(text) <= LONGEST_REASON else f"{text[:half]} … {text[-half:]}"


if __name__ == "__main__":
    print(refusal(sys.stdin.buffer.read().decode()))
