"""Tuned versions behind an OpenAI-compatible endpoint: what is served (catalog), how it decodes (engine, local), what
clients see (app), where it runs (deploy), and the proof that it answers as tuned (proof)."""
