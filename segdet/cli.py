"""The `segdet` command."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from segdet.data.check.command import main as check_data
from segdet.data.convert.command import main as convert
from segdet.engine import predict, replay, submit, train
from segdet.engine.setup import add_project_argument, load_config
from segdet.errors import SegdetError
from segdet.evaluation.analysis.command import main as analyze
from segdet.migrate import main as migrate
from segdet.report.command import main as report
from segdet.utils.collect_env import collect_env_info


def run_command(command: Callable[[list[str]], object], argv: list[str] | None = None) -> None:
    """Call a command; a user's mistake ends the process with one message and exit code 2.

    Args:
        command: takes the arguments.
        argv: the process's by default. `--debug` anywhere among them keeps the traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        command([one for one in argv if one != "--debug"])
    except SegdetError as error:
        if "--debug" in argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def info(argv: list[str]) -> None:
    """Print versions and devices; with a config, its final values and what set each."""
    parser = argparse.ArgumentParser(prog="segdet info", description=info.__doc__)
    parser.add_argument("--config-file", "--config", metavar="FILE", default="")
    add_project_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    cfg = load_config(args)
    print(collect_env_info())
    if args.config_file or args.opts:
        print(f"\n{cfg.dump_with_sources()}", end="")


def evaluate(argv: list[str]) -> None:
    """Evaluate a trained model: `train --eval-only`."""
    train.main(["--eval-only", *argv])


COMMANDS: dict[str, Callable[[list[str]], object]] = {
    "info": info,
    "train": train.main,
    "submit": submit.main,
    "eval": evaluate,
    "predict": predict.main,
    "check-data": check_data,
    "convert": convert,
    "analyze": analyze,
    "report": report,
    "replay": replay.main,
    "migrate": migrate,
}


def main() -> None:
    """The `segdet` command."""
    width = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="segdet",
        description="Instance and panoptic segmentation.",
        epilog="\n".join(f"{name:{width}}{_first_line(call)}" for name, call in COMMANDS.items())
        + "\n\nMore about one: segdet COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="keep the traceback of a mistake")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of these below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    args = parser.parse_args()
    sys.argv[0] = f"segdet {args.command}"  # what its own help calls it
    run_command(COMMANDS[args.command], args.arguments + ["--debug"] * args.debug)


def _first_line(call: Callable[[list[str]], object]) -> str:
    return (call.__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    main()
