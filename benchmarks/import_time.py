"""What importing segdet costs, next to `import torch`: medians over fresh interpreters.

python -m benchmarks.import_time [--repeats N] [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

PACKAGES = ["segdet"] + [
    f"segdet.{file.parent.name}"
    for file in sorted((Path(__file__).parents[1] / "segdet").glob("*/__init__.py"))
]
TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def import_seconds(module: str, repeats: int) -> float:
    """Median over `repeats` fresh interpreters, after one that warms the file cache."""
    command = [sys.executable, "-c", TIMED.format(module)]
    runs = [
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for _ in range(repeats + 1)
    ]
    return statistics.median(float(run) for run in runs[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    args = parser.parse_args()

    torch_s = import_seconds("torch", args.repeats)
    rows = []
    for module in PACKAGES:
        ours_s = import_seconds(module, args.repeats)
        rows.append({"name": f"import {module}", "ours_s": ours_s, "peer": "import torch"})
        rows[-1] |= {"peer_s": torch_s, "ratio": torch_s / ours_s, "limit_s": 1.2 * torch_s}
        print(f"{module:22} {ours_s:7.3f} s   {ours_s / torch_s:5.2f} x import torch")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
