"""The dashboard's server, which writes down what each run of a page's script takes.

    python -m benchmarks.timed_server LOG HOME.py [streamlit's options]

A line of LOG is one run: seconds on the clock and of the processor's time of its thread, whether it drew the whole
page or only fragments, whether a tick asked for it, and the server's memory. All of what streamlit does for a run is
in it (callbacks, the script, making messages, collecting garbage), but not the way to the browser and its drawing.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil


def watch(log: Path) -> None:
    """Have every run of a script written down in `log` from now on."""
    from streamlit.runtime.scriptrunner.script_runner import ScriptRunner

    original, finished, process = ScriptRunner._run_script, ScriptRunner._on_script_finished, psutil.Process()
    ends = threading.local()  # a run that asks for another, as a callback may, has several ends

    def ended(self: Any, context: Any, event: Any, *rest: Any) -> None:
        ends.names.append(event.name)
        finished(self, context, event, *rest)

    def timed(self: Any, data: Any) -> None:
        begun, worked = time.perf_counter(), time.thread_time()
        ends.names = []
        try:
            original(self, data)
        finally:
            fragments = "SCRIPT_STOPPED_WITH_SUCCESS" not in ends.names
            line = {
                "seconds": time.perf_counter() - begun, "cpu_s": time.thread_time() - worked, "fragments": fragments,
                "rss_bytes": process.memory_info().rss, "torch": "torch" in sys.modules,
            }  # fmt: skip
            with log.open("a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")

    setattr(ScriptRunner, "_on_script_finished", ended)  # noqa: B010
    setattr(ScriptRunner, "_run_script", timed)  # noqa: B010 - its type is streamlit's own affair


def main() -> None:
    """Become the server."""
    from streamlit.web.cli import main as streamlit

    log, *arguments = sys.argv[1:]
    watch(Path(log))
    sys.argv = ["streamlit", "run", *arguments]
    streamlit()


if __name__ == "__main__":
    main()
