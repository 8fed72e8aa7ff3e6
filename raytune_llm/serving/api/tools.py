"""Tools in a chat: whether the version's template takes them, the grammar of a required call, and the calls that an
answer makes, whole or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raytune_llm.serving.api.chat_requests import ChatRequest
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.tool_format import PLAIN, Call, ToolFormat, takes_tools, tool_format
from raytune_llm.serving.engine.base import Finish, ServedModel
from raytune_llm.serving.engine.stop_strings import StopStrings


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """How one request's answers may call tools."""

    format: ToolFormat
    names: tuple[str, ...]
    opening: str
    """The beginning of the answer, where a call is required."""
    schema: str | None
    """JSON text of the schema of a required call."""
    is_named: bool
    """Whether the request names the function, which is then no news: such answers finish with `stop`, as OpenAI's."""
    at_most_one: bool

    def reader(self) -> CallReader:
        return CallReader(self)


def tool_use(served: ServedModel, request: ChatRequest) -> ToolUse | None:
    """None where no tool is offered. Raises ApiError for what the version's chat template doesn't take."""
    _require_template(served, request)
    offered = request.offered_tools
    if not offered:
        return None
    tokenizer = served.tokens.tokenizer
    form = tool_format(tokenizer, str(tokenizer.chat_template))
    if form is None and not request.must_call:
        raise _unsupported(
            f"the chat template of {served.id} writes tool calls in a form that this endpoint can't read; require a "
            'call by tool_choice="required", or leave tools out',
            "tools",
        )
    form = form or PLAIN
    opening, schema = "", None
    if request.must_call:
        schema = form.schema([(function.name, function.parameters) for function in offered])
        opening, form = form.opening, replace(form, marker="")
    return ToolUse(
        format=form,
        names=tuple(function.name for function in offered),
        opening=opening,
        schema=schema,
        is_named=request.must_call and request.tool_choice != "required",
        at_most_one=request.parallel_tool_calls is False,
    )


def _require_template(served: ServedModel, request: ChatRequest) -> None:
    """Raise ApiError for tools, calls or results that the template would leave out."""
    has_calls = any(message.tool_calls for message in request.messages)
    has_results = any(message.role == "tool" for message in request.messages)
    if not (request.offered_tools or has_calls or has_results):
        return
    tools, calls, results = takes_tools(served.tokens.tokenizer)
    for what, has, does, param in (
        ("tools", bool(request.offered_tools), tools, "tools"),
        ("tool calls", has_calls, calls, "messages"),
        ("results of tools", has_results, results, "messages"),
    ):
        if has and not does:
            raise _unsupported(
                f"the chat template of {served.id} has no place for {what}, so that the model would never see them; "
                "leave them out, or ask a model whose template has",
                param,
            )


def _unsupported(message: str, param: str) -> ApiError:
    return ApiError(400, message, code="unsupported_parameter", param=param)


class CallReader:
    """Takes the calls out of one answer's text as it is generated: text before them passes, calls wait for the end."""

    def __init__(self, use: ToolUse) -> None:
        self._use = use
        self._marker = StopStrings((use.format.marker,)) if use.format.marker else None
        self._held = ""
        """The answer from its first call on."""
        self._has_begun = self._is_held = False

    def add(self, text: str) -> str:
        """Text that is no call."""
        if self._is_held:
            self._held += text
            return ""
        if self._marker is None:
            return self._before_json(text)
        shown, self._is_held = self._marker.add(text)
        if self._is_held:
            self._held = self._marker.flush()
        return shown

    def _before_json(self, text: str) -> str:
        """Without a marker, an answer that begins with { or [ may be a call."""
        self._held += text
        begun = self._held.lstrip()
        if not self._has_begun and not begun:
            return ""
        if not self._has_begun and (begun[0] in "{[" or self._use.schema is not None):
            self._is_held = True
            return ""
        self._has_begun = True
        shown, self._held = self._held, ""
        return shown

    def end(self) -> tuple[str, list[Call]]:
        """The rest of the text, and the calls."""
        if self._marker is not None and not self._is_held:
            return self._marker.flush(), []
        text, calls = self._use.format.calls(self._held, self._use.names)
        return text, calls[:1] if self._use.at_most_one else calls

    def whole(self, text: str) -> tuple[str, list[Call]]:
        """Of an answer that isn't streamed: its text without calls, and the calls."""
        shown = self.add(text)
        rest, calls = self.end()
        return (shown.rstrip() if calls else shown) + rest, calls

    def reason(self, finish: Finish, calls: Sequence[Call]) -> str:
        """finish_reason, in OpenAI's words."""
        return "tool_calls" if calls and finish is Finish.stop and not self._use.is_named else finish.value
