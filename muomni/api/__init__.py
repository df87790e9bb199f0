"""The public face, in Python: `MuOmni`, `train` and what they use. The root gives their names."""
