"""Pure functions, one file per hot operation. Each file holds a readable reference and the fast paths."""
