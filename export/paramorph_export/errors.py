"""What can go wrong while exporting."""

from __future__ import annotations

from paramorph_rt.errors import ParamorphError


class ExportError(ParamorphError, RuntimeError):
    """An export that is impossible, or whose result is not what the network computes."""
