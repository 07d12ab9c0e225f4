"""`python -m paramorph_rt` is `paramorph-rt`."""

from .cli import console

raise SystemExit(console())
