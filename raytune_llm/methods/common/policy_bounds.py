"""Bounds on a policy's eval metrics, beyond which its training ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PolicyBounds:
    """Each None = no bound."""

    max_kl: float | None
    """Of eval/kl_per_token, nats per token."""
    max_repetition: float | None
    """Of eval/repetition, the share of repeated 4-grams."""
    min_entropy: float | None
    """Of eval/entropy, nats per token."""

    def why_stop(self, metrics: Mapping[str, float]) -> str | None:
        """Why training should stop now, with what to change, or None."""
        kl, repeated, entropy = (metrics[f"eval/{name}"] for name in ("kl_per_token", "repetition", "entropy"))
        if self.max_kl is not None and kl > self.max_kl:
            return (
                f"KL runaway: eval/kl_per_token={kl:.3g} nats is above method.max_kl={self.max_kl:g}; raise "
                "method.kl_coefficient or lower tuning.learning_rate_multiplier"
            )
        if self.max_repetition is not None and repeated > self.max_repetition:
            return (
                f"repeated text: eval/repetition={repeated:.3g} is above method.max_repetition="
                f"{self.max_repetition:g}; raise method.length_penalty or method.kl_coefficient"
            )
        if self.min_entropy is not None and entropy < self.min_entropy:
            return (
                f"entropy collapse: eval/entropy={entropy:.3g} nats per token is below method.min_entropy="
                f"{self.min_entropy:g}; raise method.kl_coefficient or method.temperature, or lower "
                "tuning.learning_rate_multiplier"
            )
        return None
