"""The least address space that a command needs: with less, libraries hang instead of failing."""

from __future__ import annotations

from ..errors import ParamorphError

# Threads, linear algebra and ITK, before any image: with less than 1250 MB a cohort of small images
# crashed in 4 of 9 runs; with more, in none of 10.
LEAST_BYTES = 3 * 2**29


def check_address_space() -> None:
    """Refuse a limit, such as of `ulimit -v` or a cluster's queue, in which nothing can run.

    Raises:
        ParamorphError: It is below `LEAST_BYTES`.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_BYTES:
        raise ParamorphError(
            f"memory: expected {LEAST_BYTES >> 20} MB of address space at least, got a limit of "
            f"{limit >> 20} MB; raise it by `ulimit -v`, or ask the queue for more."
        )
