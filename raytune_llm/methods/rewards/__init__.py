"""The rewards of a policy's completions: one file for each, and their mixture (mixture.py)."""
