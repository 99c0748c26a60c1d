"""All that only a GPU can tell, unattended: `make gpu-check PYTHON=python3` on a machine with one.

Builds the ops, compares every op with the CPU, runs the ops' tests on the card, times Mask R-CNN
and the ops against torchvision's, trains the demo model, compares compiled models with the
same as they are, and runs the other tests that are for a card. Uses the interpreter as it is and no
network; a stage whose packages are missing is left out and says so (PYTHONPATH may name a folder
that has them). Each stage has a limit on its time, all together 9 minutes.
`benchmarks/results/CARD.json` is written after each, so that nothing is lost.

Ends with status 0, with 1 where a stage failed or ran out of time, with 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).resolve().parents[2]
TAIL = 2000  # characters kept of what a failing stage printed


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One subprocess of this interpreter."""

    name: str
    command: list[str]
    needs: list[str]  # packages
    seconds: int  # limit
    environment: dict[str, str] = field(default_factory=dict)  # beside this process's
    result: Path | None = None  # the file in which it leaves what it found


def make_stages(device: str, quick: bool, folder: Path) -> list[Stage]:
    """In the order of what is worth most, should time run out.

    Args:
        device: "cuda", or "cpu" to try the stages themselves.
        quick: with a fraction of the work.
        folder: for what the stages write.
    """
    threads = str(min(8, os.cpu_count() or 1))

    def measured(module: str, few: str) -> list[str]:
        options = [f"--device={device}", f"--threads={threads}", f"--filter={few if quick else ''}"]
        return ["-m", f"benchmarks.{module}", *options, f"--json={folder / module}.json"]

    build = Stage(
        name="build",
        command=["setup.py", "build_ext", "--inplace"],
        needs=["setuptools"],
        seconds=150,
        # Without nvcc there would be nothing to compare.
        environment={"SEGDET_CUDA": "1"} if device == "cuda" else {},
    )
    compared = folder / "agreement.json"
    agreement = Stage(
        name="agreement",
        command=[
            "-m",
            "benchmarks.gpu_check.agreement",
            f"--device={device}",
            f"--json={compared}",
        ],
        needs=[],
        seconds=60,
        result=compared,
    )
    marker = "cuda and not slow" if device == "cuda" else "not cuda and not slow"

    def tested(name: str, *paths: str, needs: list[str], seconds: int) -> Stage:
        xml = folder / f"{name}.xml"
        chosen = ["-m", marker, "-k", "nms" if quick else ""]
        return Stage(
            name=name,
            command=["-m", "pytest", "-q", *paths, *chosen, f"--junitxml={xml}"],
            needs=["pytest", *needs],
            seconds=seconds,
            result=xml,
        )

    tests = tested("tests", "tests/ops", needs=[], seconds=150)
    paths = ["tests/structures", "tests/layers", "tests/data/test_parcel.py"]
    packages = ["hypothesis", "pycocotools", "shapely", "yaml", "PIL"]
    other_tests = tested("other_tests", *paths, needs=packages, seconds=60)
    models = Stage(
        name="models",
        command=measured("models", few="inference"),
        needs=["torchvision", "tqdm", "pycocotools", "yaml", "PIL"],
        seconds=120,
        result=folder / "models.json",
    )
    ops = Stage(
        name="ops",
        command=measured("ops", few="N=1000"),
        needs=["torchvision", "tqdm"],
        seconds=150,
        result=folder / "ops.json",
    )
    settings = {"MODEL.DEVICE": device, "OUTPUT_DIR": folder / "demo"}
    settings |= {"DATALOADER.NUM_WORKERS": threads} | ({"SOLVER.MAX_ITER": 4} if quick else {})
    drawn = (ROOT / "datasets" / "demo").exists()
    demo = Stage(
        name="demo",
        command=["tools/demo.py", *(str(one) for pair in settings.items() for one in pair)],
        needs=["pycocotools", "hotcoco", "tensorboard", "yaml", "PIL", "safetensors", "tqdm"]
        + ([] if drawn else ["shapely"]),  # to draw the data set
        seconds=150,
        result=folder / "demo" / "metrics.json",
    )
    words = ["reduce-overhead"] + ([] if quick else ["Mask R-CNN R50-FPN"])
    compiled = Stage(
        name="compiled",
        command=[
            "-m",
            "benchmarks.compiled",
            f"--device={device}",
            f"--threads={threads}",
            f"--json={folder / 'compiled.json'}",
            "--filter",
            *words,
        ],
        needs=[*models.needs, *(["triton"] if device == "cuda" else [])],
        seconds=240,
        result=folder / "compiled.json",
    )
    return [build, agreement, tests, models, ops, demo, compiled, other_tests]


def main(argv: list[str]) -> int:
    """Run the stages; write after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device",
        choices=["cuda", "cpu"],
        default="cuda",
        help="cpu: to try the stages themselves",
    )
    parser.add_argument("--quick", action="store_true", help="a fraction of the work")
    parser.add_argument("--minutes", type=float, default=9, help="for all (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages alone")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} finds no GPU here", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * args.minutes
    folder = ROOT / "build" / "gpu_check"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stages = make_stages(args.device, args.quick, folder)
    if unknown := set(args.only or []) - {stage.name for stage in stages}:
        parser.error(
            f"no stage {', '.join(unknown)}; there are {', '.join(s.name for s in stages)}"
        )
    report: dict[str, Any] = {"machine": describe_machine(args.device), "stages": {}}
    card = report["machine"]["card"]
    file = args.results / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    for stage in stages:
        if args.only and stage.name not in args.only:
            continue
        print(f"-- {stage.name}", flush=True)
        found = run_stage(stage, end)
        print(f"   {found['status']}, {found['seconds']} s: {found['summary']}", flush=True)
        report["stages"][stage.name] = found
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {file}")
    statuses = {found["status"] for found in report["stages"].values()}
    return 1 if statuses & {"failed", "out of time"} else 0


def describe_machine(device: str) -> dict[str, str]:
    """Card, versions and commit."""
    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "card": card,
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "commit": output_of("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "date": time.strftime("%Y-%m-%d"),
    }


def output_of(*command: str) -> str:
    """Of a program that may not be there."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def run_stage(stage: Stage, end: float) -> dict[str, Any]:
    """Its status ("ok", "failed", "out of time", "left out"), a summary and its rows.

    Args:
        stage: to run.
        end: when it must be over, as of `time.monotonic()`.
    """
    if missing := [name for name in stage.needs if not is_there(name)]:
        summary = f"needs {', '.join(missing)}"
        return {"status": "left out", "seconds": 0, "summary": summary}
    limit = min(stage.seconds, end - time.monotonic())
    if limit < 5:
        return {"status": "out of time", "seconds": 0, "summary": "not begun"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    start = time.monotonic()
    status, printed = run_for(
        limit, [sys.executable, *stage.command], {"PYTHONPATH": path, **stage.environment}
    )
    found: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - start)}
    found["summary"], found["rows"] = read_result(stage.result) if stage.result else ("", [])
    if status != "ok":
        found["printed"] = printed[-TAIL:]
        print(found["printed"])
    return found


def run_for(seconds: float, command: list[str], environment: dict[str, str]) -> tuple[str, str]:
    """A status and what was printed. Out of time, all that the program has started ends with it."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except BaseException as error:  # Ctrl-C, too: it does not reach another session
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return "out of time", process.communicate()[0]
    return ("failed" if process.returncode else "ok"), printed


def is_there(package: str) -> bool:
    """Whether it can be imported by a new interpreter."""
    command = [sys.executable, "-c", f"import {package}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def read_result(file: Path) -> tuple[str, list[dict[str, Any]]]:
    """A line about what a stage found, and its rows."""
    if not file.is_file():
        return "", []
    if file.suffix == ".xml":
        return read_tests(ElementTree.parse(file).getroot())
    if file.name == "metrics.json":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        last = {key: value for row in rows for key, value in row.items() if "/AP" in key}
        shown = [f"{key} {last[key]:.1f}" for key in ("bbox/AP", "segm/AP") if key in last]
        return ", ".join(shown), [last]
    rows = json.loads(file.read_text())
    if "ok" in rows[0]:
        wrong = [f"{row['op']} {row['check']}" for row in rows if not row["ok"]]
        return f"{len(rows)} comparisons, wrong: {', '.join(wrong) or 'none'}", rows
    slower = [f"{row['name']} {row['ratio']:.2f}" for row in rows if row["ratio"] < 1]
    return f"{len(rows)} timings, slower than the peer: {', '.join(slower) or 'none'}", rows


def read_tests(root: ElementTree.Element) -> tuple[str, list[dict[str, Any]]]:
    """From the JUnit file of pytest: how many passed, and the failures."""
    outcomes = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    for case in root.iter("testcase"):
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        if wrong is not None:
            outcomes["failed"] += 1
            failures.append({"test": case.get("name"), "message": wrong.get("message")})
        else:
            outcomes["skipped" if case.find("skipped") is not None else "passed"] += 1
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()), failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
