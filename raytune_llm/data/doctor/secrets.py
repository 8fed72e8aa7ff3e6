"""Keys, credentials and personal data in texts: a tuned model can repeat them to anyone.

Counts only: what is found is never shown, and places name no text. Patterns, not proof: a key that is revoked and a
number made up look the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

from raytune_llm.data.doctor.view import Check, Hits, Seen, View
from raytune_llm.data.findings import Finding, Severity, many

Test = Callable[[re.Match[str]], bool]


def _luhn(found: re.Match[str]) -> bool:
    """Whether a number's last digit is the check digit of payment cards (ISO/IEC 7812-1)."""
    digits = [int(c) for c in found[0] if c.isdigit()]
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def _mod97(found: re.Match[str]) -> bool:
    """Whether an account number has the check digits of ISO 13616."""
    number = re.sub(r"\s", "", found[0])
    return 15 <= len(number) <= 34 and int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1


def _always(found: re.Match[str]) -> bool:
    return True


SECRETS = {  # name: a part that every match has, pattern
    "AWS keys": ("AKIA", re.compile(r"\bAKIA[0-9A-Z]{16}\b")),
    "API keys (sk-…)": ("sk-", re.compile(r"\bsk-(?=[\w-]*\d)[A-Za-z0-9_-]{20,}")),
    "GitHub tokens": ("ghp_", re.compile(r"\bghp_[A-Za-z0-9]{36,}\b")),
    "GitHub application tokens": ("ghs_", re.compile(r"\bghs_[A-Za-z0-9]{36,}\b")),
    "GitHub tokens (fine-grained)": ("github_pat_", re.compile(r"\bgithub_pat_\w{22,}")),
    "Hugging Face tokens": ("hf_", re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")),
    "Google API keys": ("AIza", re.compile(r"\bAIza[\w-]{35}")),
    "Slack tokens": ("xox", re.compile(r"\bxox[abprs]-[\w-]{10,}")),
    "private keys": ("PRIVATE KEY-----", re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")),
    "JSON web tokens": ("eyJ", re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}")),
}
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b")
NUMBERS: dict[str, tuple[re.Pattern[str], Test]] = {
    "phone numbers": (
        re.compile(
            r"(?<![\w.+(-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\) ?|\d{2,4}[ .-])\d{3}[ .-]\d{3,4}"
            r"(?![\w-]|\.\d| ?[=+*/])"
        ),
        _always,
    ),
    "payment card numbers": (
        re.compile(
            r"(?<![\w./=#-])(?:(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6(?:011|5\d\d)|35\d\d)(?:[ -]?\d){12}"
            r"|3[47]\d\d(?:[ -]?\d){11})(?![\w-]| \d)"
        ),
        _luhn,
    ),
    "bank accounts (IBAN)": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _mod97),
}
HAS_DIGITS = re.compile(r"\d{2}")


class Secrets(Check):
    """Counts records with each pattern. Numbers are looked for in a sample."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._secret, self._personal = Hits(), Hits()
        self._secrets, self._people = Counter[str](), Counter[str]()

    def see(self, seen: Seen) -> None:
        text = seen.text
        kinds = [name for name, (part, pattern) in SECRETS.items() if part in text and pattern.search(text)]
        if kinds:
            self._secret.add(seen.index, "")
            self._secrets.update(kinds)
        personal = ["e-mail addresses"] if "@" in text and EMAIL.search(text) else []
        if seen.index % self._view.stride == 0 and HAS_DIGITS.search(text):
            for name, (pattern, test) in NUMBERS.items():
                if any(map(test, pattern.finditer(text))):
                    personal.append(name)
        if personal:
            self._personal.add(seen.index, "")
            self._people.update(personal)

    def merge(self, later: Secrets) -> None:
        self._secret.merge(later._secret)
        self._personal.merge(later._personal)
        self._secrets.update(later._secrets)
        self._people.update(later._people)

    def findings(self) -> Iterable[Finding]:
        name = self._view.name
        if self._secret.count:
            yield Finding(
                "secrets",
                Severity.warning,
                name,
                f"{name}: {many(self._secret.count, 'record')} with what looks like credentials "
                f"({_counts(self._secrets)}): a tuned model can repeat them; remove and revoke them",
                self._secret.count,
                self._secret.places(self._view),
            )
        if self._personal.count:
            sampled = f"; numbers{self._view.of_sample}" if self._view.of_sample else ""
            yield Finding(
                "personal_data",
                Severity.note,
                name,
                f"{name}: {many(self._personal.count, 'record')} with what looks like personal data "
                f"({_counts(self._people)}{sampled}): a tuned model can repeat them; remove those of real people",
                self._personal.count,
                self._personal.places(self._view),
            )


def _counts(found: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in found.most_common())
