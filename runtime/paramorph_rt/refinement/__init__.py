"""Refinement of a field on the pair itself; `coarse_to_fine` is the place to start."""
