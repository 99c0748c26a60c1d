"""What importing segdet costs, next to `import torch`: medians over fresh interpreters.

python -m benchmarks.import_time [--repeats N] [--json FILE]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

PEER = "torch"
PACKAGES = [
    f"segdet.{file.parent.name}"
    for file in sorted((Path(__file__).parents[1] / "segdet").glob("*/__init__.py"))
]
MODULES = ["segdet", *PACKAGES, "segdet.cli"]  # the last imports everything
TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def import_seconds(module: str) -> float:
    command = [sys.executable, "-c", TIMED.format(module)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    args = parser.parse_args()

    import_seconds(MODULES[-1])  # warms the file cache
    # In rounds, so that a slow moment of the machine meets all alike.
    rounds = [
        {name: import_seconds(name) for name in [PEER, *MODULES]} for _ in range(args.repeats)
    ]
    seconds = {name: median(one[name] for one in rounds) for name in rounds[0]}
    rows = [
        {
            "name": f"import {name}",
            "ours_s": seconds[name],
            "peer": f"import {PEER}",
            "peer_s": seconds[PEER],
            "ratio": seconds[PEER] / seconds[name],
            "limit_s": None,
        }
        for name in MODULES
    ]
    for name in [PEER, *MODULES]:
        print(f"{name:20} {seconds[name]:7.3f} s  {seconds[name] / seconds[PEER]:5.2f} x torch")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
