"""Answers compared in pairs by a judge (evaluation/judges): asked in both orders, kept, counted, reported."""
