"""How much the plug-in adds to a bare start of Python: ``python -c pass`` with and without its start-up file.

Runs the interpreter of this environment alternately with the start-up file in place and moved aside, and compares pair
by pair. Run it in an environment with a regular install; an editable one also measures setuptools' own finder. Writes
``startup.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from sysconfig import get_path

PTH = Path(get_path("purelib")) / "nnunet_din.pth"


def start_seconds() -> float:
    """Wall-clock seconds of one ``python -c pass``."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200, help="pairs of starts (default: 200)")
    args = parser.parse_args()
    if not PTH.exists():
        sys.exit(f"{PTH} does not exist: install the package into this environment first (pip install .).")
    aside = PTH.with_suffix(".aside")
    differences, without = [], []
    try:
        for _ in range(args.pairs):
            with_plugin = start_seconds()
            PTH.rename(aside)
            bare = start_seconds()
            aside.rename(PTH)
            differences.append(1e3 * (with_plugin - bare))
            without.append(1e3 * bare)
    finally:
        if aside.exists():
            aside.rename(PTH)
    low, median, high = statistics.quantiles(differences, n=4)
    result = {
        "command": "python benchmarks/startup.py" + (f" --pairs {args.pairs}" if args.pairs != 200 else ""),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "pairs": args.pairs,
        "bare_start_ms": round(statistics.median(without), 2),
        "added_ms": {"median": round(median, 2), "quartiles": [round(low, 2), round(high, 2)]},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"python -c pass: {result['bare_start_ms']} ms; the plug-in adds {median:.2f} ms (quartiles {low:.2f} to "
        f"{high:.2f}, {args.pairs} pairs)"
    )


if __name__ == "__main__":
    main()
