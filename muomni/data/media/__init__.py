"""Media: how pictures, sound and video are named, opened and decoded."""
