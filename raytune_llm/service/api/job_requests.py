"""What a request for a fine-tuning job may have: OpenAI's fields, and the methods of this project in the same shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from raytune_llm.service.api.values import AdapterSize, BatchSize, Beta, Epochs, RateMultiplier, Value
from raytune_llm.service.records import AUTO

METHODS = {"supervised": "sft", "dpo": "dpo", "rlhf": "rlhf", "dss": "dss", "distill": "distill"}
"""The choice of conf/method that each type of method is."""
OPENAI = ("n_epochs", "batch_size", "learning_rate_multiplier")
"""Hyperparameters that OpenAI's API has for every method."""
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512
MAX_SEED = 2**31 - 1
MAX_TAGS = 16


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _text(pattern: str, words: str) -> AfterValidator:
    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"must be {words}")
        return value

    return AfterValidator(check)


NAME_WORDS = "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most"
Suffix = Annotated[str, _text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", f"{NAME_WORDS} 64")]
Project = Annotated[str, _text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", f"{NAME_WORDS} 128")]
Label = Annotated[
    str, _text(r"[A-Za-z0-9_][A-Za-z0-9_ .:-]{0,127}", "letters, digits, spaces and _ . : -, at most 128")
]
Metadata = dict[str, str]


class Hyperparameters(Strict):
    """Values, or "auto": a sweep finds the best. Left out, those that OpenAI's API has are "auto"."""

    n_epochs: Epochs = None
    batch_size: BatchSize = None
    learning_rate_multiplier: RateMultiplier = None
    adapter_size: AdapterSize = None

    def given(self) -> dict[str, Value]:
        """Those that have a value or are "auto"."""
        return self.model_dump(exclude_none=True)


class DpoHyperparameters(Hyperparameters):
    beta: Beta = None


class DistillHyperparameters(Hyperparameters):
    teacher: Annotated[str | None, Field(max_length=256)] = None
    """An offered base, or a version of one's own."""


class Supervised(Strict):
    hyperparameters: Hyperparameters | None = None


class Dpo(Strict):
    hyperparameters: DpoHyperparameters | None = None


class Distill(Strict):
    hyperparameters: DistillHyperparameters | None = None


class Method(Strict):
    """How the model learns: its type, and that type's hyperparameters."""

    type: Literal["supervised", "dpo", "rlhf", "dss", "distill"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    rlhf: Supervised | None = None
    dss: Supervised | None = None
    distill: Distill | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        if value == "reinforcement":
            raise ValueError('reinforcement with graders is not offered; {"type": "rlhf"} learns from rewards')
        return value

    @model_validator(mode="after")
    def _of_its_type(self) -> Self:
        for name in METHODS:
            if name != self.type and getattr(self, name) is not None:
                raise ValueError(f"has type {self.type}, so {name} must be left out")
        return self

    def hyperparameters(self) -> dict[str, Value]:
        part = getattr(self, self.type)
        return {} if part is None or part.hyperparameters is None else part.hyperparameters.given()


class Wandb(Strict):
    project: Project
    name: Label | None = None
    entity: Project | None = None
    tags: Annotated[list[Label] | None, Field(max_length=MAX_TAGS)] = None


class Integration(Strict):
    """Where else metrics are shown; only Weights & Biases."""

    type: Literal["wandb"]
    wandb: Wandb


class JobRequest(Strict):
    """A fine-tuning job to be."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """An offered base, or NAME@3 to continue a version of one's own."""
    training_file: Annotated[str, Field(min_length=1, max_length=1024)]
    """A file's id, or a URI with an allowed beginning."""
    validation_file: Annotated[str | None, Field(max_length=1024)] = None
    hyperparameters: Hyperparameters | None = None
    """The older place of a supervised job's hyperparameters."""
    method: Method | None = None
    suffix: Suffix | None = None
    """The name of the tuned model."""
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)] = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Integration] | None, Field(max_length=1)] = None

    @field_validator("metadata")
    @classmethod
    def _bounded(cls, value: Metadata | None) -> Metadata | None:
        return value if value is None else check_pairs(value, MAX_PAIRS, MAX_KEY, MAX_VALUE)

    @field_validator("method")
    @classmethod
    def _in_one_place(cls, value: Method | None, info: ValidationInfo) -> Method | None:
        if value is not None and info.data.get("hyperparameters") is not None:
            raise ValueError(
                f"must have the hyperparameters, as {value.type}.hyperparameters; leave out those at the top"
            )
        return value

    @property
    def type(self) -> str:
        return "supervised" if self.method is None else self.method.type

    def values(self) -> dict[str, Value]:
        """The hyperparameters; those that OpenAI's API has are "auto" where they aren't given."""
        if self.method is not None:
            given = self.method.hyperparameters()
        else:
            given = {} if self.hyperparameters is None else self.hyperparameters.given()
        return {**dict.fromkeys(OPENAI, AUTO), **given}


def check_pairs(pairs: Mapping[str, str], most: int, longest_key: int, longest_value: int) -> dict[str, str]:
    """Raises ValueError for too many of them, or too long ones."""
    if len(pairs) > most:
        raise ValueError(f"must have at most {most} pairs")
    for key, value in pairs.items():
        if not 1 <= len(key) <= longest_key:
            raise ValueError(f"must have keys of 1 to {longest_key} characters")
        if len(value) > longest_value:
            raise ValueError(f"must have values of at most {longest_value} characters")
    return dict(pairs)
