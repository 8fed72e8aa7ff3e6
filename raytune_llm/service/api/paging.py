"""Pages of lists, as OpenAI's API has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Generic, Literal, Self, TypeVar

from fastapi import Query
from pydantic import BaseModel

from raytune_llm.serving.api.errors import invalid

After = Annotated[str | None, Query(description="The id after which the page begins: the last one of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many there are on a page, at most.")]


class Item(BaseModel):
    """What lists consist of."""

    id: str


T = TypeVar("T", bound=Item)


class Page(BaseModel, Generic[T]):
    """A part of a list; `after=last_id` asks for the next one."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool
    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, data: list[T], has_more: bool) -> Self:
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, has_more=has_more, first_id=first, last_id=last)


def page_of(items: Sequence[T], after: str | None, limit: int) -> Page[T]:
    """The items after that of an id, at most so many. Raises ApiError for an id that none of them has."""
    shown, has_more = cut([item.id for item in items], after, limit, "after")
    return Page.of(list(items[shown]), has_more)


def cut(ids: Sequence[str], after: str | None, limit: int, param: str) -> tuple[slice, bool]:
    """The places of a page, and whether more follow it."""
    if after and after not in ids:
        raise invalid(f"{param}={after} is not in this list: it begins after an id of the list's own", param=param)
    start = ids.index(after) + 1 if after else 0
    return slice(start, start + limit), start + limit < len(ids)
