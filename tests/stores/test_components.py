"""Short names, and components as plain values and back."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest

from raytune_llm.annotation.teachers.base import Teacher
from raytune_llm.annotation.teachers.none import NoTeacher
from raytune_llm.errors import InputError, require
from raytune_llm.methods.base import Method
from raytune_llm.methods.sft import SFT
from raytune_llm.models.adapters.base import Adapter
from raytune_llm.models.adapters.lora import LoRA
from raytune_llm.stores.choices import component, is_protocol, name_of, names, nearest_first
from raytune_llm.stores.components import all_keys, build, describe, field_types, unknown_key
from raytune_llm.training.tracking.base import Tracker
from raytune_llm.training.tracking.jsonl import JSONL
from raytune_llm.training.tracking.tensorboard import TensorBoard


class Colour(Enum):
    red = "red"
    blue = "blue"


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int
    colour: Colour

    def __post_init__(self) -> None:
        require(self.size > 0, "inner.size", self.size, "> 0")


@dataclass(frozen=True, kw_only=True)
class Outer:
    method: Method
    adapter: Adapter | None
    inner: Inner
    optional: Inner | None
    tracking: dict[str, Tracker]
    layers: list[int]
    free: dict[str, Any]
    name: str | None


VALUES = {
    "method": {"type": "sft", "metric": "eval/loss", "init_adapter": None},
    "adapter": None,
    "inner": {"size": 3, "colour": "blue"},
    "optional": None,
    "tracking": {"board": {"type": "tensorboard", "flush_seconds": 5}},
    "layers": [1, 2],
    "free": {"tuning": {"steps": [1, None]}},
    "name": None,
}
BUILT = Outer(
    method=SFT(metric="eval/loss", init_adapter=None),
    adapter=None,
    inner=Inner(size=3, colour=Colour.blue),
    optional=None,
    tracking={"board": TensorBoard(flush_seconds=5)},
    layers=[1, 2],
    free={"tuning": {"steps": [1, None]}},
    name=None,
)


def test_plain_values_become_a_component_and_come_back():
    assert build(Outer, VALUES) == BUILT
    assert describe(BUILT) == VALUES


def test_what_has_not_changed_is_taken_from_a_former_instance():
    values = VALUES | {"inner": {"size": 4, "colour": "red"}, "layers": [3]}
    built = build(Outer, values, former=(VALUES, BUILT))
    assert built == build(Outer, values) and built.inner.size == 4 and built.layers == [3]
    assert built.method is BUILT.method and built.tracking is BUILT.tracking


def test_what_may_be_null_may_be_given():
    lora = {"type": "lora", **{name: getattr(LORA, name) for name in field_types(LoRA)}}
    values = VALUES | {"adapter": lora, "optional": VALUES["inner"], "tracking": {}}
    built = build(Outer, values)
    assert (built.adapter, built.optional, built.tracking) == (LORA, BUILT.inner, {})
    assert describe(built) == values


LORA = LoRA(rate_factor=1.0, alpha=16.0, dropout=0.0, targets=None, rslora=False, dora=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": {"metric": "x"}}, "missing: job.method.type; allowed: distill, "),
        ({"method": {"type": "sfft", "metric": "x"}}, "job.method.type=sfft is not allowed; allowed: sft, "),
        ({"method": {"type": "..errors", "metric": "x"}}, "job.method.type=..errors is not allowed"),
        ({"method": {"type": 3, "metric": "x"}}, "job.method.type=3 is not allowed"),
        ({"method": {"type": "sft", "init_adapter": None}}, "missing: job.method.metric, a key of SFT"),
        ({"method": {"type": "sft", "metric": "x", "alpha": 1}}, "unknown key: job.method.alpha"),
        ({"method": None}, "job.method=null is not allowed; allowed: a mapping of keys"),
        ({"method": "sft"}, "job.method=sft is not allowed; allowed: a mapping of keys"),
        ({"tracking": {"board": {"flush_seconds": 5}}}, "missing: job.tracking.board.type; allowed: "),
        ({"tracking": {"board": 5}}, "job.tracking.board=5 is not allowed"),
        ({"inner": {"size": "x", "colour": "blue"}}, "job.inner.size: Value 'x' of type 'str'"),
        ({"inner": {"size": 1, "colour": "green"}}, "job.inner.colour: Invalid value 'green'"),
        ({"inner": {"size": 0, "colour": "blue"}}, "inner.size=0 is not allowed; allowed: > 0"),
        ({"inner": {"type": "x", "size": 1, "colour": "blue"}}, "unknown key: job.inner.type"),
        ({"layers": ["x"]}, "job.layers[0]: Value 'x'"),
        ({"nmae": 1}, "unknown key: job.nmae; nearest valid: job.name"),
    ],
)
def test_refused_with_the_full_key(changed, message):
    for former in (({}, None), (VALUES, BUILT)):
        with pytest.raises(InputError) as error:
            build(Outer, VALUES | changed, key="job.", former=former)
        assert str(error.value).startswith(message)


def test_names_are_modules_with_one_public_frozen_keyword_only_dataclass():
    assert names(Teacher) == ("local", "none", "openai", "version")
    assert component(Teacher, "none", "teacher.type") is NoTeacher
    assert name_of(NoTeacher(), Teacher) == "none"
    assert is_protocol(Teacher) and not is_protocol(NoTeacher) and not is_protocol(dict[str, Teacher])


@pytest.mark.parametrize(
    "stranger", [BUILT.inner, JSONL(), SFT(metric="x", init_adapter=None)], ids=lambda value: type(value).__name__
)
def test_what_has_no_name_is_not_described(stranger):
    with pytest.raises(TypeError, match=r"is not a component of raytune_llm\.models\.adapters"):
        describe(stranger, Adapter)


def test_keys_leave_out_the_types_of_choices():
    expected = ["method", "method.metric", "method.init_adapter", "adapter", "inner", "inner.size", "inner.colour"]
    assert all_keys(VALUES)[:7] == expected
    assert all_keys({"size": 1}, "inner.") == ["inner.size"]


def test_the_nearest_come_first():
    assert nearest_first("dso", ("dpo", "sft", "dss"))[-1] == "sft"
    assert nearest_first("dso", ()) == []
    assert unknown_key("a.siz", ["a.size", "b"]).startswith("unknown key: a.siz; nearest valid: a.size ")
