"""What a session measured, next to what is possible on paper and what is aimed at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .paper import SHAPES, decode_tokens_per_second, step_seconds

SLOTS, RANK = 16, 16
SOLO_MS = {
    ("1b", 8, 128): 576,
    ("1b", 1, 128): 576,
    ("1b", 1, 512): 576,
    ("1b", 1, 2048): 602,
    ("8b", 8, 128): 1403,
    ("8b", 1, 128): 1088,
    ("8b", 1, 512): 1088,
    ("8b", 1, 2048): 2745,
}
"""Sixteen solo PEFT steps on paper: 36 ms (8 B: 68 ms) to launch one, or its arithmetic where that takes longer."""
PACKED_AIMS = {("1b", 1, 128): 12.0, ("1b", 8, 128): 2.5, ("8b", 1, 128): 6.0, ("8b", 8, 128): 1.3}
NOT_MEASURED = "not measured"

Figures = dict[str, Any]
"""All lines of a step, merged."""


@dataclass(frozen=True)
class Measured:
    """A figure: how it is written, and its value, which an aim is compared with; None = it shows nothing."""

    text: str
    value: float | None


@dataclass(frozen=True)
class Row:
    what: str
    step: str
    """Whose lines it is made of."""
    read: Callable[[Figures], Measured]
    """Raises KeyError where the step didn't come so far."""
    paper: str = ""
    at_least: float | None = None
    at_most: float | None = None
    load: str | None = None
    """Which line of the step's, where it has one for each load."""

    @property
    def aim(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def cells(self, lines: list[Figures]) -> list[str]:
        """What, measured, on paper, aim, and whether it was met."""
        own: Figures = {}
        for line in lines:
            own |= line if line["step"] == self.step and (self.load is None or line.get("load") == self.load) else {}
        try:
            found = self.read(own)
        except (KeyError, TypeError, ZeroDivisionError):
            return [self.what, NOT_MEASURED, self.paper, self.aim, ""]
        return [self.what, found.text, self.paper, self.aim, self._met(found.value)]

    def _met(self, value: float | None) -> str:
        if value is None or (self.at_least is None and self.at_most is None):
            return ""
        enough = self.at_least is None or value >= self.at_least
        return "yes" if enough and (self.at_most is None or value <= self.at_most) else "no"


def number(key: str, form: str = "{:.3g}", factor: float = 1.0) -> Callable[[Figures], Measured]:
    return lambda figures: Measured(form.format(figures[key] * factor), figures[key] * factor)


def share(key: str, whole: str, form: str = "{:.2f}") -> Callable[[Figures], Measured]:
    """One figure as a part (or a multiple) of another."""
    return lambda figures: Measured(form.format(figures[key] / figures[whole]), figures[key] / figures[whole])


def count(part: str, whole: str) -> Callable[[Figures], Measured]:
    return lambda figures: Measured(f"{figures[part]} of {figures[whole]}", figures[part] / figures[whole])


def ends_right(name: str) -> Callable[[Figures], Measured]:
    def read(figures: Figures) -> Measured:
        right = figures[name]["right"]
        return Measured("only composed", None) if right is None else Measured("yes" if right else "no", float(right))

    return read


def packed_times(figures: Figures) -> Measured:
    """How many times faster than sixteen solo steps."""
    packed, solo = figures["packed_seconds"], SLOTS * figures["solo_seconds"]
    return Measured(f"{solo / packed:.1f}× ({1e3 * packed:.0f} ms for {1e3 * solo:.0f} ms)", solo / packed)


def eager_over_compiled(figures: Figures) -> Measured:
    ratio = figures["eager"]["packed_seconds"] / figures["compiled"]["packed_seconds"]
    return Measured(f"{ratio:.2f}×", ratio)


def survived(figures: Figures) -> Measured:
    passes, distance = figures["out_of_memory_passes"], figures["out_of_memory_distance"]
    return Measured(f"in {passes} passes, {distance:.1g} off", distance if passes > 1 else float("inf"))


def packed_rows() -> list[Row]:
    rows = []
    for (shape, batch_size, length), solo in SOLO_MS.items():
        bound = 1e3 * step_seconds(SHAPES[shape], batch_size, length, slots=SLOTS, lora_rank=RANK)
        load, step = f"{batch_size}×{length}", f"packed-{shape}"
        name = f"{shape[0]} B, {load}: sixteen solo PEFT steps over one packed step"
        paper = f"{solo / bound:.1f}× ({bound:.0f} ms for {solo} ms)"
        rows.append(Row(name, step, packed_times, paper, PACKED_AIMS.get((shape, batch_size, length)), load=load))
        if (batch_size, length) == (8, 128):
            name = f"{shape[0]} B, {load}: packed without compilation over with it"
            rows.append(Row(name, step, eager_over_compiled, "1.3"))
            aim = 0.55 if shape == "8b" else None
            rows.append(
                Row(f"{shape[0]} B, {load}: share of the matmul rate", step, number("share"), "1", aim, load=load)
            )
            rows.append(
                Row(f"{shape[0]} B, {load}: share of time with the GPU busy", step, number("busy"), "1", load=load)
            )
    return rows


def decoding_rows() -> list[Row]:
    shape, rows = SHAPES["1b"], []
    for adapters in (8, 32, 64):
        name, side = f"1 B, 64 rows over {adapters} adapters", f"adapters_{adapters}"
        bound = decode_tokens_per_second(shape, rows=64, adapters=adapters, lora_rank=RANK, context=512)
        speed, last = number(f"{side}_tokens_per_second", "{:.0f}"), adapters == 64
        rows.append(Row(f"{name}: tokens a second", "decoding", speed, f"{bound:.0f}"))
        of_bound = share(f"{side}_tokens_per_second", f"{side}_bound")
        rows.append(Row(f"{name}: share of the bandwidth bound", "decoding", of_bound, "1", 0.5 if last else None))
        of_merged = share(f"{side}_tokens_per_second", "merged_tokens_per_second")
        rows.append(
            Row(f"{name}: share of one merged model's speed", "decoding", of_merged, "", 0.85 if last else None)
        )
    return rows


ROWS = [
    Row("bf16 matmul, TFLOP/s", "machine", number("matmul_flops", "{:.0f}", 1e-12), "800"),
    Row("copy on the GPU, TB/s read and written", "machine", number("copy_bytes_per_second", "{:.2f}", 1e-12), "3.0"),
    Row("GPUs that a local Ray session counts", "machine", number("ray_gpus", "{:.0f}"), "", 1.0),
    Row("a task without a GPU sees one", "machine", number("task_without_gpu_sees_it", "{:.0f}"), "", at_most=0.0),
    Row("fp32 gradients of 16 mixed trials: distance to PEFT", "correct", number("fp32_distance"), "", at_most=1e-5),
    Row("bf16: error over PEFT's own bf16 error", "correct", number("bf16_error_over_peft"), "", at_most=1.5),
    Row("a trial alone: distance to the same among 16", "correct", number("alone_distance"), "", at_most=1e-5),
    Row("a step that runs out of memory", "correct", survived, "", at_most=1e-5),
    Row("row kernels, sums in fp32: distance to fp64", "correct", number("rows_fp32_distance"), "", at_most=1e-5),
    Row("the same replayed over other slots", "correct", number("rows_replayed_distance"), "", at_most=1e-5),
    Row("served adapters that pass the parity check", "served", count("plain_passed", "plain_of"), "", 1.0),
    Row("the same with large logits", "served", count("larger_logits_passed", "larger_logits_of"), "", 1.0),
    Row("the same in fp32, all tokens", "served", count("exact_passed", "exact_of"), "", 1.0),
    Row("mixed adapters: nats off without CUDA graphs", "served", number("without_graphs_nats"), "", at_most=0.1),
    Row("mixed adapters: nats off without row kernels", "served", number("without_row_kernels_nats"), "", at_most=0.1),
    Row("mixed adapters: nats off without grouped products", "served", number("without_groups_nats"), "", at_most=0.1),
    *packed_rows(),
    Row("1 B sweep: TRL one at a time over ours", "sweep", share("trl_1_seconds", "ours_seconds", "{:.2f}×"), "7", 3.0),
    Row(
        "1 B sweep: TRL four at a time over ours",
        "sweep",
        share("trl_4_seconds", "ours_seconds", "{:.2f}×"),
        "2.4",
        1.6,
    ),
    *decoding_rows(),
    Row("a pack actor killed: trials that end whole", "lost-actor", count("whole_trials", "trials"), "", 1.0),
    Row("rlhf on the embedded base ends right", "commands", ends_right("rlhf"), "", 1.0),
    Row("dss on the embedded base ends right", "commands", ends_right("dss"), "", 1.0),
]
HEADER = ["", "measured", "on paper", "aim", "met"]


def markdown(lines: list[Figures]) -> str:
    """The table; without lines, with nothing measured."""
    cells = [HEADER, ["---"] * len(HEADER), *(row.cells(lines) for row in ROWS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
