"""response_format: text, any JSON object, or JSON that satisfies a schema."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

DEEPEST = 200
"""Levels of JSON in each other: far less than what recursive code can take."""


def is_too_deep(value: object) -> bool:
    """Whether it is nested in more than DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return any(isinstance(item, dict | list) for item in level)


def _not_too_deep(value: dict[str, Any]) -> dict[str, Any]:
    if is_too_deep(value):
        raise ValueError(f"it is nested in more than {DEEPEST} levels; use $defs and $ref")
    return value


Schema = Annotated[dict[str, Any], AfterValidator(_not_too_deep)]
ANY_OBJECT = '{"type": "object"}'


class TextFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]

    @property
    def schema_text(self) -> str | None:
        """JSON text of the schema; None for any text."""
        return None


class ObjectFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["json_object"]

    @property
    def schema_text(self) -> str | None:
        return ANY_OBJECT


class NamedSchema(BaseModel):
    """A schema as chat completions have it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, description="Accepted and not used")
    description: str | None = Field(None, description="Accepted and not used")
    schema_: Schema | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Answers satisfy the schema in any case")


class SchemaFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def schema_text(self) -> str | None:
        schema = self.json_schema.schema_
        return ANY_OBJECT if schema is None else json.dumps(schema)


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]
