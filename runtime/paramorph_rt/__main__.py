"""`python -m paramorph_rt` is `paramorph-rt`."""

from .cli import main

raise SystemExit(main())
