"""Measures of a registration, one kind per module; all on arrays and fields already in memory."""
