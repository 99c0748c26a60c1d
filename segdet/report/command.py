"""`segdet report`: a run as one page, alone or beside another."""

from __future__ import annotations

import argparse
from pathlib import Path

from segdet.engine.setup import load_projects
from segdet.errors import ConfigError
from segdet.report.gather import report_of
from segdet.report.page import page
from segdet.report.run import read_run
from segdet.utils.logger import setup_logger
from segdet.utils.writing import write_text_atomically


def main(argv: list[str]) -> None:
    """Write a page about a training run: settings, data, curves, metrics, pictures.

    The page is one file that asks for no address: it can be mailed and opened from a folder.
    """
    parser = argparse.ArgumentParser(
        prog="segdet report",
        description=main.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="the OUTPUT_DIR of a run")
    parser.add_argument("--against", metavar="RUN", help="another run, to compare with")
    parser.add_argument("--output", metavar="FILE", help="the page; by default RUN/report.html")
    parser.add_argument(
        "--pictures", type=int, default=48, help="in the gallery at most; 48 take about 5 MB"
    )
    parser.add_argument(
        "--project", action="append", default=[], metavar="FOLDER", help="a plug-in"
    )
    args = parser.parse_args(argv)
    if args.pictures < 0:
        raise ConfigError(f"--pictures must be >= 0, is {args.pictures}")
    setup_logger()
    load_projects(args.project)
    runs = [read_run(folder) for folder in (args.run, args.against) if folder is not None]
    if len({run.name for run in runs}) < len(runs):
        for run in runs:
            run.name = "/".join(run.folder.resolve().parts[-2:])
    output = Path(args.output or runs[0].folder / "report.html")
    text = page(report_of(runs, pictures=args.pictures))
    try:
        write_text_atomically(output, text)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from None
    print(f"{output}: {len(text.encode()) / 1e6:.1f} MB")
    for run in runs:
        for one in run.missing:
            print(f"  without {one.what} of {run.name}: {one.why}")
