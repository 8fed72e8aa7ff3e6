"""instructor: objects by tools, by JSON schema and in JSON mode."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
from check import CHAT, KEY, URL, asked
from pydantic import BaseModel


class Trip(BaseModel):
    """A trip to a city."""

    city: Literal["Bern", "Oslo"]
    by_bus: bool


def made(mode: Any) -> bool:
    client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0), mode=mode)
    trip = client.chat.completions.create(
        model=CHAT,
        response_model=Trip,
        messages=[{"role": "user", "content": 'Bern or Oslo? Answer like this: {"city": "Bern", "by_bus": true}'}],
        temperature=0,
        max_tokens=200,
        max_retries=0,
    )
    return trip.city in ("Bern", "Oslo")


asked("objects by tools", lambda: made(instructor.Mode.TOOLS))
asked("objects by JSON schema", lambda: made(instructor.Mode.JSON_SCHEMA))
