"""How long `paramorph-rt --help` takes, in a fresh process each time."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from record import write_result

RUNS = 21


def main() -> None:
    command = [sys.executable, "-m", "paramorph_rt", "--help"]
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - started)
        assert "infer" in shown
    median = statistics.median(seconds)
    path = write_result("startup", {"seconds": seconds, "median_seconds": median})
    print(f"{median:.3f} s; {path}")


if __name__ == "__main__":
    main()
