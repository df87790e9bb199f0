"""One engine a file, each behind the same signature."""
