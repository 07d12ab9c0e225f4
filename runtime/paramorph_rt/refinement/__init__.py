"""Refinement of a field on the pair itself; `coarse_to_fine` tells its story."""
