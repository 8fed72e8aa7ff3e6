"""The tuning methods, one file each. None imports another, nor Ray; raytune_llm/methods/base.py has their
contract."""

"""The tuning methods, one file each. None imports another, nor Ray; raytune_llm/methods/base.py has their
contract."""
