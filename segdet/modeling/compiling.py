"""`torch.compile` of a model's dense parts, with graphs that serve images of every size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from segdet.errors import ConfigError
from segdet.modeling.backbones import Backbone
from segdet.modeling.basis_module import ProtoNet as BasisModule
from segdet.modeling.box_head import FastRCNNConvFCHead, FastRCNNOutputLayers
from segdet.modeling.fcis_head import FCISHead
from segdet.modeling.fcos_head import FCOSHead
from segdet.modeling.keypoint_head import KRCNNConvDeconvUpsampleHead
from segdet.modeling.mask_head import MaskRCNNConvUpsampleHead
from segdet.modeling.maskiou_head import MaskIoUHead
from segdet.modeling.meta_arch.pointrend import CoarseMaskHead
from segdet.modeling.meta_arch.retinanet import RetinaNetHead
from segdet.modeling.point_head import StandardPointHead
from segdet.modeling.rpn import StandardRPNHead
from segdet.modeling.sem_seg_head import SemSegHead
from segdet.modeling.yolact_layers import BilinearFPN, FastMaskIoUNet, PredictionHead, ProtoNet

_log = logging.getLogger(__name__)

# torch's modes, and for those with CUDA graphs the one that does the same without.
MODES = {
    "default": "default",
    "reduce-overhead": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
    "max-autotune-no-cudagraphs": "max-autotune-no-cudagraphs",
}


@dataclass(frozen=True, kw_only=True)
class CompileConfig:
    """MODEL.COMPILE, which says whether and how `compile_model` is called."""

    enabled: bool = False
    mode: Annotated[str, tuple(MODES)] = "default"


class Kind(NamedTuple):
    """How a part is compiled."""

    varying: tuple[int, ...]  # dimensions of its inputs that differ from call to call
    method: str = "forward"
    on_regions: bool = False  # of which an image may have none


MAPS = Kind((0, 2, 3))  # (B, C, H, W)
REGIONS = Kind((0,), on_regions=True)  # (R, ...)

# The parts, and what inherits from them. Selection, NMS and pooling between them stay as they are.
PARTS: dict[type[nn.Module], Kind] = {
    Backbone: MAPS,
    BasisModule: MAPS,
    BilinearFPN: MAPS,
    FCISHead: MAPS,
    FCOSHead: MAPS,
    PredictionHead: MAPS,
    ProtoNet: MAPS,
    RetinaNetHead: MAPS,
    SemSegHead: Kind((0, 2, 3), method="layers"),
    StandardRPNHead: MAPS,
    CoarseMaskHead: REGIONS,
    FastMaskIoUNet: Kind((0, 1, 2), on_regions=True),  # (N, M, M)
    FastRCNNConvFCHead: REGIONS,
    FastRCNNOutputLayers: REGIONS,
    KRCNNConvDeconvUpsampleHead: REGIONS,
    MaskIoUHead: REGIONS,
    MaskRCNNConvUpsampleHead: REGIONS,
    StandardPointHead: Kind((0, 2), on_regions=True),  # (R, C, P)
}

# Torch takes sizes 0 and 1 for constants and, on the CPU, chooses other kernels for fewer than 16
# of something: each would be one more graph.
FEWEST_REGIONS = 16


def compile_model(model: nn.Module, *, mode: str = "default", backend: str = "inductor") -> None:
    """Compile the dense parts of a model, in place; what they compute stays the same.

    A part is compiled at its first call; one on maps twice, for one image and for several. State
    dicts do not change, and copies are compiled, too. Parts on fewer regions than `FEWEST_REGIONS`
    run as they are.

    Args:
        model: a system of ours, or one that has some of `PARTS`.
        mode: of `torch.compile`. With one that uses CUDA graphs, parts on maps are compiled anew
            for each size of image: for models whose images are all of one size.
        backend: of `torch.compile`.

    Raises:
        ConfigError: an unknown mode.
    """
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, is {mode!r}")
    has_graphs = MODES[mode] != mode
    names = []
    for name, part, kind in find_parts(model):
        own = MODES[mode]
        if has_graphs and not kind.on_regions:
            own, kind = mode, kind._replace(varying=())
        setattr(part, kind.method, Compiled(part, kind, {"mode": own, "backend": backend}))
        names.append(name)
    if has_graphs:
        # Else the next part's graph may overwrite the maps that this one gave.
        model.register_forward_pre_hook(_begin_step)
    _log.info("torch.compile, mode %s, of %s", mode, ", ".join(names) or "nothing: no known part")


def find_parts(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, Kind]]:
    """The outermost modules that are `PARTS`, by name; `prefix` stands before each."""
    for name, child in model.named_children():
        kind = next((kind for part, kind in PARTS.items() if isinstance(child, part)), None)
        if kind is None:
            yield from find_parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child, kind


class Compiled:
    """Stands in for a method of a part; a copy of the part gets one of its own.

    Args:
        part: whose method it is.
        kind: of the part; with nothing that varies, each size of the inputs has its own graph.
        settings: of `torch.compile`.
    """

    def __init__(self, part: nn.Module, kind: Kind, settings: dict[str, Any]) -> None:
        self._made_of = (part, kind, settings)
        self._kind = kind
        self._plain: Callable[..., Any] = getattr(type(part), kind.method).__get__(part)
        self._compiled: Callable[..., Any] = torch.compile(
            self._plain, dynamic=None if kind.varying else False, **settings
        )

    def __call__(self, *inputs: Any) -> Any:
        """What the method gives for `inputs`: tensors, or collections of them."""
        tensors = list(_tensors(inputs))
        if self._kind.on_regions and len(tensors[0]) < FEWEST_REGIONS:
            return self._plain(*inputs)
        for x in tensors:
            for dim in self._kind.varying:
                if dim < x.dim():
                    torch._dynamo.maybe_mark_dynamic(x, dim)
        return self._compiled(*inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _begin_step(model: nn.Module, inputs: Any) -> None:
    torch.compiler.cudagraph_mark_step_begin()
