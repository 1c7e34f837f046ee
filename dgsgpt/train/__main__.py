"""The trainer process: `python -m dgsgpt.train RUN_DIR`. It is given only its run directory.

Exit codes: 0 finished, 143 stopped and saved, 2 an error of the user's to mend, 1 a bug (with its traceback).
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from dgsgpt.train.report import StopRequest


def main() -> int:
    """Train the run named on the command line to its end."""
    run_dir = Path(sys.argv[1]).absolute()
    stop = StopRequest(run_dir)
    # First of all, before the seconds that importing torch takes: a stop must never go unheard.
    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop.on_signal)
    from dgsgpt.train.session import train_run

    return train_run(run_dir, stop)


if __name__ == "__main__":
    sys.exit(main())
