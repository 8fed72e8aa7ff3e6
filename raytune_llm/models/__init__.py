"""Bases and the adapters on them: loading, facts, forward passes, PEFT files. Knows nothing of methods, data or Ray."""
