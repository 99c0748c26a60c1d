"""Weight files of every known format as safetensors under official names."""

from __future__ import annotations

import argparse
import json
import logging
from operator import attrgetter
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from segdet.checkpoint.catalog import locate
from segdet.checkpoint.checkpointer import DetectionCheckpointer
from segdet.checkpoint.names import find_family, strip_data_parallel, to_official
from segdet.checkpoint.reading import read_checkpoint
from segdet.config import CfgNode
from segdet.data.catalog import DatasetCatalog, MetadataCatalog
from segdet.engine.setup import add_project_argument, load_config
from segdet.errors import CheckpointError, ConfigError
from segdet.modeling import build_model
from segdet.modeling.meta_arch import needs_of
from segdet.utils.logger import setup_logger
from segdet.utils.writing import write_atomically, write_text_atomically

_log = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    """Write a weight file of any known format as safetensors, and beside it what belongs to it."""
    parser = argparse.ArgumentParser(
        description=main.__doc__,
        epilog="Without a config only names are translated: right for backbones. With the model's "
        "config every name and shape is checked, and the config is written beside the weights.",
    )
    parser.add_argument("input", help="a file, or an address that MODEL.WEIGHTS may have")
    parser.add_argument("output", type=Path, help="FILE.safetensors; FILE.json is written too")
    parser.add_argument("--config-file", default="", metavar="FILE", help="the model's config")
    add_project_argument(parser)
    parser.add_argument(
        "--class-names",
        default="",
        metavar="A,B,...",
        help="of the model's classes in their order; by default those of the config's data set",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="settings that win over the config file's; they come last",
    )
    args = parser.parse_args(argv)
    setup_logger()
    output: Path = args.output
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: the output must end in .safetensors")
    beside = output.with_suffix(".json")
    for file in (output, beside):
        if file.exists() and not args.overwrite:
            raise CheckpointError(f"{file} is there already; --overwrite replaces it")
    if args.opts and not args.config_file:
        raise ConfigError("--opts changes a config; name it with --config-file")
    cfg = load_config(args) if args.config_file else None
    names = [one.strip() for one in args.class_names.split(",")] if args.class_names else []
    weights, metadata, facts = convert(args.input, cfg)
    facts["class_names"] = _class_names(cfg, names)
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=2) + "\n"
    write_atomically(output, lambda file: file.write(safetensors.torch.save(weights, metadata)))
    write_text_atomically(beside, text)
    _log.info("%s: %d tensors; %s: what belongs to them", output, len(weights), beside)


def convert(
    address: str, cfg: CfgNode | None = None
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """The weights of a file under official names.

    Args:
        address: as MODEL.WEIGHTS.
        cfg: of the model that the weights belong to; None translates names alone, and a backbone's
            stay without the detector's prefix.

    Returns:
        The tensors; the metadata for the safetensors file; and facts for a person or program:
        `source`, `family`, `trained_with`, `config`.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the config's model.
    """
    file, by_suffix = locate(address)
    checkpoint = read_checkpoint(file)
    weights = strip_data_parallel(checkpoint["model"])
    family = find_family(weights, ())
    trained_with = family.settings(weights) if family else {}
    by_suffix |= checkpoint["matching_heuristics"]
    author = (family and family.author) or checkpoint.get("__author__")
    if cfg is not None:
        weights = _as_model_has_them(address, cfg)
        by_suffix = False
    elif family is not None:
        weights = to_official(family, weights, str(file))[0]
        by_suffix = True
    metadata = {"format": "pt"}
    if by_suffix:
        metadata["matching_heuristics"] = "True"
    if isinstance(author, str):
        metadata["__author__"] = author
    facts = {
        "source": file.name,
        "family": family.title if family else "official",
        "trained_with": trained_with,
        "config": cfg,
    }
    return {name: value.clone().contiguous() for name, value in weights.items()}, metadata, facts


def _as_model_has_them(address: str, cfg: CfgNode) -> dict[str, Tensor]:
    """What the file has of the config's model, under the model's names and in its shapes."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    checkpointer = DetectionCheckpointer(model, cfg=cfg, averaged=cfg.MODEL_EMA.ENABLED)
    checkpointer.load(address, checkpointables=[])
    report = checkpointer.report
    assert report is not None, "load makes it"
    if report.wrong_shape:
        raise CheckpointError(f"{report.file}: is of another model\n{report.problems()}")
    state = model.state_dict()
    return {name: state[name] for name in report.loaded}


def _class_names(cfg: CfgNode | None, given: list[str]) -> list[str]:
    """The names given, or those of the config's first data set that has some.

    Raises:
        ConfigError: they are not as many as the config's model has classes.
    """
    if cfg is None:
        return given
    key = needs_of(cfg.leaves()).labels.get("annotations")
    if key is None:
        return given
    count = attrgetter(key)(cfg)
    if given:
        if len(given) != count:
            raise ConfigError(f"{len(given)} class names for {count} classes ({key})")
        return given
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name in DatasetCatalog.list():
            names = MetadataCatalog.get(name).get("thing_classes") or []
            if len(names) == count:
                return list(names)
    return []
