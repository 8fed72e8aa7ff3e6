"""How records are read: which files a location names, their formats, and what is wrong with them."""
