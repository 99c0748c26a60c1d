"""`segdet info|train|eval|predict`: the same functions that the scripts in tools/ call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

import yaml

from segdet.config import CfgNode, get_cfg
from segdet.config.node import DEFAULT
from segdet.errors import SegdetError
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


def info(argv: list[str]) -> None:
    """Print versions and devices; with a config, its final values and what set each."""
    parser = argparse.ArgumentParser(prog="segdet info", description=info.__doc__)
    parser.add_argument("--config-file", "--config", metavar="FILE", default="")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    cfg = get_cfg()
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    print(collect_env_info())
    if args.config_file or args.opts:
        print("", *yaml_with_sources(cfg), sep="\n")


def yaml_with_sources(cfg: CfgNode, indent: str = "") -> Iterator[str]:
    """Lines of YAML; behind each value that something set stands what."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield f"{indent}{key}:"
            yield from yaml_with_sources(value, indent + "  ")
        else:
            text = yaml.safe_dump({key: value}, default_flow_style=True, width=sys.maxsize)
            source = cfg.source_of(key)
            comment = "" if source == DEFAULT else f"  # {source}"
            yield indent + text.strip().removeprefix("{").removesuffix("}") + comment


COMMANDS: dict[str, Callable[[list[str]], object]] = {"info": info}


def main() -> None:
    """The `segdet` command."""
    parser = argparse.ArgumentParser(prog="segdet", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="`segdet COMMAND --help`")
    args = parser.parse_args()
    run_command(COMMANDS[args.command], args.arguments)


if __name__ == "__main__":
    main()
