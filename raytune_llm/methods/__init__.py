"""The tuning methods, one file each. None imports another, nor Ray; raytune_llm/method.py says what a method is."""
