"""How long a user waits for ``masksub --help`` and the like, beside an empty Python process.

    python benchmarks/startup.py --json benchmarks/results/startup.json

The commands take turns, so that what else runs on the machine hits all of them; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

COMPLETION = {"COMP_WORDS": "masksub train digits/", "COMP_CWORD": "2", "_MASKSUB_COMPLETE": "complete_bash"}
MASKSUB = [sys.executable, "-c", "import sys; sys.argv[0] = 'masksub'; from masksub.cli import main; main()"]
CASES: dict[str, tuple[list[str], dict[str, str]]] = {
    "python -c pass": ([sys.executable, "-c", "pass"], {}),
    "masksub --help": ([*MASKSUB, "--help"], {}),
    "masksub train --help": ([*MASKSUB, "train", "--help"], {}),
    "masksub --version": ([*MASKSUB, "--version"], {}),
    "masksub recipes": ([*MASKSUB, "recipes"], {}),
    "TAB after masksub train digits/": (MASKSUB, COMPLETION),
    "python -c 'import masksub'": ([sys.executable, "-c", "import masksub"], {}),
    "python -c 'import torch'": ([sys.executable, "-c", "import torch"], {}),
}


def seconds(command: list[str], more: dict[str, str]) -> tuple[float, float]:
    """Time on the wall and CPU time of one process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env={**os.environ, **more}, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="processes of each command")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    busy = round(os.getloadavg()[0], 1)
    for command, more in CASES.values():  # once unmeasured: files are then in memory, and compiled
        seconds(command, more)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(options.rounds):
        for name, (command, more) in CASES.items():
            found[name].append(seconds(command, more))
    medians = {
        name: {
            "wall_seconds": round(statistics.median(wall for wall, _ in times), 3),
            "cpu_seconds": round(statistics.median(cpu for _, cpu in times), 3),
        }
        for name, times in found.items()
    }
    for name, figures in medians.items():
        print(f"{name:32} {figures['wall_seconds']:6.3f} s, of which {figures['cpu_seconds']:6.3f} s computed")
    if options.json:
        versions = {name: metadata.version(name) for name in ("masksub", "typer", "torch")}
        facts = {"python": platform.python_version(), **versions, "cores": os.cpu_count(), "rounds": options.rounds}
        facts["load_average_before"] = busy  # of other programs: above the cores, the wall says little
        options.json.write_text(json.dumps({"environment": facts, "medians": medians}, indent=2) + "\n")


if __name__ == "__main__":
    main()
