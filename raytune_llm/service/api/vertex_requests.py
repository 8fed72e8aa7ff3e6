"""What a request for a tuning job may have in Vertex AI's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from raytune_llm.service.api.job_requests import Strict, check_pairs
from raytune_llm.service.api.values import BatchSize, Epochs, RateMultiplier, Value
from raytune_llm.service.records import AUTO

ADAPTER_SIZES = {
    "ADAPTER_SIZE_ONE": 1,
    "ADAPTER_SIZE_TWO": 2,
    "ADAPTER_SIZE_FOUR": 4,
    "ADAPTER_SIZE_EIGHT": 8,
    "ADAPTER_SIZE_SIXTEEN": 16,
    "ADAPTER_SIZE_THIRTY_TWO": 32,
}
UNSPECIFIED = "ADAPTER_SIZE_UNSPECIFIED"
MAX_LABELS, MAX_LABEL = 64, 63


def _number(value: Any) -> Any:
    """Google's JSON has 64-bit integers as texts."""
    return int(value) if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 19 else value


Int64 = BeforeValidator(_number)


class HyperParameters(Strict):
    epochCount: Annotated[Epochs, Int64] = None
    learningRateMultiplier: RateMultiplier = None
    adapterSize: (
        Literal[
            "ADAPTER_SIZE_UNSPECIFIED",
            "ADAPTER_SIZE_ONE",
            "ADAPTER_SIZE_TWO",
            "ADAPTER_SIZE_FOUR",
            "ADAPTER_SIZE_EIGHT",
            "ADAPTER_SIZE_SIXTEEN",
            "ADAPTER_SIZE_THIRTY_TWO",
        ]
        | None
    ) = None
    batchSize: Annotated[BatchSize, Int64] = None


class SupervisedTuningSpec(Strict):
    trainingDatasetUri: Annotated[str, Field(min_length=1, max_length=1024)]
    """The id of a file uploaded to /v1/files, or a URI with an allowed beginning."""
    validationDatasetUri: Annotated[str | None, Field(max_length=1024)] = None
    hyperParameters: HyperParameters | None = None
    exportLastCheckpointOnly: bool | None = None
    """One version is published in either case."""

    def hyperparameters(self) -> dict[str, Value]:
        """By OpenAI's names; those left out are "auto"."""
        given = self.hyperParameters or HyperParameters()
        is_open = given.adapterSize in (None, UNSPECIFIED)
        values: dict[str, Value] = {
            "n_epochs": given.epochCount or AUTO,
            "learning_rate_multiplier": given.learningRateMultiplier or AUTO,
            "adapter_size": AUTO if is_open else ADAPTER_SIZES[str(given.adapterSize)],
        }
        return values if given.batchSize is None else {**values, "batch_size": given.batchSize}


class TuningJobRequest(Strict):
    """A tuning job to be."""

    baseModel: Annotated[str, Field(min_length=1, max_length=256)]
    """An offered base, or NAME@3 to continue a version of one's own."""
    supervisedTuningSpec: SupervisedTuningSpec
    tunedModelDisplayName: Annotated[str | None, Field(max_length=128)] = None
    description: Annotated[str | None, Field(max_length=4096)] = None
    labels: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _supervised(cls, value: Any) -> Any:
        others = [name for name in value if name.endswith("Spec")] if isinstance(value, dict) else []
        for name in others:
            if name not in ("supervisedTuningSpec", "encryptionSpec"):
                raise ValueError(f"{name} is not offered; POST /v1/fine_tuning/jobs has dpo, rlhf, dss and distill")
        return value

    @field_validator("labels")
    @classmethod
    def _bounded(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        return value if value is None else check_pairs(value, MAX_LABELS, MAX_LABEL, MAX_LABEL)

    def spec(self) -> SupervisedTuningSpec:
        return self.supervisedTuningSpec
