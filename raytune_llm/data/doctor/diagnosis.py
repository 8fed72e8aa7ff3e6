"""The doctor's results with their text, and the error that carries them."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.data.doctor import terminal
from raytune_llm.data.doctor.results import Results
from raytune_llm.errors import InputError


@dataclass(frozen=True)
class Diagnosis(Results):
    """The results of `examine`."""

    def text(self, *, whole: bool = False, colour: bool | None = None) -> str:
        """A summary for the terminal that ends with the verdict; `whole`: with previews and what to start with."""
        return terminal.render(self, whole=whole, colour=colour)


class UnusableData(InputError):
    """The data have problems; the text is the diagnosis."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.text(colour=False))
        self.diagnosis = diagnosis
