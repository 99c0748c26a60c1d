"""`segdet replay DUMP`: a step whose loss or gradient was not finite, computed again."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdet.checkpoint.reading import read_checkpoint
from segdet.config import CfgNode, get_cfg
from segdet.config.reader import read_section
from segdet.data import build_detection_train_loader
from segdet.engine.accumulation import compute_in_parts
from segdet.engine.nonfinite import names_of
from segdet.engine.setup import add_project_argument, load_projects
from segdet.engine.train_loop import as_losses, seed_generators
from segdet.errors import CheckpointError, DataError
from segdet.layers import Losses
from segdet.modeling import build_model
from segdet.utils.mixed_precision import AMPConfig


@dataclass(kw_only=True)
class Replay:
    """What a step gave when it was computed again."""

    images: list[str]
    losses: dict[str, float]
    layers: list[str] = field(default_factory=list)  # with an output that is not finite, in order
    gradients: list[str] = field(default_factory=list)  # parameters with such a gradient
    refusal: str = ""  # of a model that gives no losses


def main(argv: list[str]) -> None:
    """Compute a dumped step again, and say where it goes wrong."""
    parser = argparse.ArgumentParser(prog="segdet replay", description=main.__doc__)
    parser.add_argument("dump", metavar="DUMP", type=Path, help="nonfinite_*.pth of OUTPUT_DIR")
    add_project_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    load_projects(args.project)
    dump = read_dump(args.dump)
    found = replay(dump, config_of(dump, args.dump, args.opts), args.dump)
    print(f"iteration {dump['iteration']}, process {dump['rank']} of {dump['world_size']}")
    print("images:", *found.images, sep="\n  ")
    print(f"the model refuses: {found.refusal}" if found.refusal else "losses (then, now):")
    for name, value in found.losses.items():
        print(f"  {name:24} {dump['losses'].get(name, float('nan')):12.6g} {value:12.6g}")
    print("first layer with a value that is not finite:", *(found.layers[:1] or ["none"]))
    if not found.refusal:
        shown = ", ".join(found.gradients[:5]) or "none"
        print(f"gradients that are not finite: {len(found.gradients)} ({shown})")


def read_dump(path: Path) -> dict[str, Any]:
    """The content of a dump.

    Raises:
        CheckpointError: it is damaged, or another kind of file.
    """
    dump = read_checkpoint(path)
    if missing := sorted(_KINDS.keys() - dump.keys()):
        raise CheckpointError(
            f"{path} is no dump of a step: it has no {', '.join(missing)}; dumps are named "
            "nonfinite_*.pth, in OUTPUT_DIR"
        )
    for key, kind in _KINDS.items():
        if not isinstance(dump[key], kind):
            found = type(dump[key]).__name__
            raise CheckpointError(f"{path}: {key} must be a {kind.__name__}, is a {found}")
    if min(dump["seed"], dump["iteration"]) < 0 or not 0 <= dump["rank"] < dump["world_size"]:
        raise CheckpointError(f"{path}: its seed, iteration, rank or world_size is out of range")
    if not all(type(value) is float for value in dump["losses"].values()):
        raise CheckpointError(f"{path}: losses must be numbers")
    return dump


_KINDS = {
    **{"config": str, "seed": int, "model": dict, "iteration": int, "rank": int},
    **{"world_size": int, "losses": dict, "images": list},
}


def config_of(dump: Mapping[str, Any], path: Path, opts: Sequence[str] = ()) -> CfgNode:
    """The config of the run, below `opts`, with its seed and no worker processes.

    Args:
        dump: as `read_dump` gives it.
        path: of the dump, for messages.
        opts: [KEY, VALUE, ...].
    """
    cfg = get_cfg()
    cfg.merge_from_text(dump["config"], str(path))
    cfg.merge_from_list(["SEED", dump["seed"], "DATALOADER.NUM_WORKERS", 0, *opts])
    return cfg


def replay(dump: Mapping[str, Any], cfg: CfgNode, path: Path) -> Replay:
    """Compute a step again: batch, parts, weights and random numbers are those it had.

    Args:
        dump: as `read_dump` gives it.
        cfg: as `config_of` gives it.
        path: of the dump, for messages.

    Raises:
        CheckpointError: the dump's tensors are not those of the config's model.
        DataError: the training data is no longer what it was.
    """
    model = build_model(cfg).train()
    _take_over(dump["model"], model, path)
    batch = _batch_of(dump, cfg)
    device = next(model.parameters()).device.type  # the CPU where the config's device is not there
    amp = read_section(AMPConfig, cfg, at="SOLVER.AMP")

    def forward(model: nn.Module, part: Any, number: int) -> Losses:
        seed_generators(dump["seed"], dump["iteration"], dump["rank"], number)
        with amp.autocast(device):
            return as_losses(model(part))

    with _watched(model) as layers:
        try:
            losses = compute_in_parts(
                model,
                batch,
                cfg.SOLVER.ACCUMULATE,
                forward=forward,
                backward=lambda total, _: total.backward(),
                buffers={name: buffer.clone() for name, buffer in model.named_buffers()},
            )
        except FloatingPointError as error:
            return Replay(images=names_of(batch), losses={}, layers=layers, refusal=str(error))
    gradients = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    values = {name: value.item() for name, value in losses.items()}
    return Replay(images=names_of(batch), losses=values, layers=layers, gradients=gradients)


def _take_over(weights: Mapping[str, Tensor], model: nn.Module, path: Path) -> None:
    """Give the model the dump's parameters and buffers, all of them and no others."""
    # What two modules share has two names in a state dict.
    parameters = model.named_parameters(remove_duplicate=False)
    tensors = dict(parameters) | dict(model.named_buffers(remove_duplicate=False))
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    for name in (*weights, *sorted(own - weights.keys())):
        if name not in tensors or name not in weights:
            lacking = "the model of its config" if name not in tensors else "the dump"
            raise CheckpointError(f"{path}: {lacking} has no {name!r:.200}")
        if tensors[name].shape != weights[name].shape:
            shape, wanted = (tuple(one.shape) for one in (weights[name], tensors[name]))
            raise CheckpointError(f"{path}: {name} has the shape {shape}, the model's is {wanted}")
        with torch.no_grad():
            tensors[name].copy_(weights[name])


def _batch_of(dump: Mapping[str, Any], cfg: CfgNode) -> list[dict]:
    loader = build_detection_train_loader(cfg)
    loader.take_share_of(dump["rank"], dump["world_size"])
    loader.seek(dump["iteration"])
    batch = next(iter(loader))
    names = names_of(batch)
    if names != dump["images"]:
        raise DataError(
            f"the batch was {', '.join(dump['images'])}, the data sets now give "
            f"{', '.join(names)}: DATASETS.TRAIN has changed, or the run had a loader of its own"
        )
    return batch


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Collects the innermost modules whose output is not finite, in the order of their calls.

    A module that calls none of its own, but computes with their weights, is such a one, too.
    """
    found: list[str] = []

    def look(name: str, module: nn.Module, output: Any) -> None:
        named = f"{name} ({type(module).__name__})"
        if any(one.startswith((named, f"{name}.")) for one in found):
            return
        if not all(one.isfinite().all() for one in _tensors(output)):
            found.append(named)

    handles = [
        module.register_forward_hook(lambda m, _, output, name=name: look(name, m, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested containers."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
