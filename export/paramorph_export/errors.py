"""What can go wrong while exporting."""

from __future__ import annotations

from paramorph_rt.errors import ParamorphError


class ExportError(ParamorphError, RuntimeError):
    """An export that cannot be done as asked, or whose result is not what the network computes."""
