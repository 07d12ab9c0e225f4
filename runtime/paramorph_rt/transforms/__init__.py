"""Reading and writing transforms: one file format per module."""
