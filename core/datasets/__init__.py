"""Data sets: class sets, files, decoding and transforms."""
