"""How good a model is and whether another is better: loss, answers, metrics, comparison, report. Knows no method and no
Ray."""
