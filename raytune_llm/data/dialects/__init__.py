"""From JSON objects of any known dialect to records."""
