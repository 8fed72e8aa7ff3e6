"""The tuning methods, one file each. None imports another, nor Ray; raytune_llm/methods/base.py says what a method
is."""

"""The tuning methods, one file each. None imports another, nor Ray; raytune_llm/methods/base.py says what a method
is."""
