"""response_format: text, any JSON object, or JSON that satisfies a schema."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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
    schema_: dict[str, Any] | None = Field(None, alias="schema")
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
