import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from segdet.config import get_cfg
from segdet.errors import ConfigError
from segdet.modeling import build_model, compile_model
from segdet.modeling.compiling import Compiled, find_parts
from segdet.modeling.mask_head import MaskRCNNConvUpsampleHead
from segdet.modeling.rpn import StandardRPNHead
from segdet.structures import Boxes, PolygonMasks, Targets

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
RPN, BOX = "proposal_generator.rpn_head", ["roi_heads.box_head", "roi_heads.box_predictor"]
SYSTEMS = {
    "mask_rcnn": ["backbone", RPN, *BOX, "roi_heads.mask_head"],
    "mask_scoring_rcnn": ["backbone", RPN, *BOX, "roi_heads.mask_head", "roi_heads.maskiou_head"],
    "fcis": ["backbone", RPN, "head"],
    "centermask_lite": [
        *("backbone", "proposal_generator.fcos_head"),
        *("roi_heads.mask_head", "roi_heads.maskiou_head"),
    ],
    "yolact_plus": ["backbone", "proto_net", "maskiou_net", "fpn", "prediction_layers.0"],
    "blendmask": ["backbone", "proposal_generator.fcos_head", "basis_module"],
    "pointrend": [
        *("backbone", RPN, *BOX),
        *("roi_heads.mask_head.point_head", "roi_heads.mask_head.coarse_head"),
    ],
    "panoptic_fpn": ["backbone", RPN, *BOX, "roi_heads.mask_head", "sem_seg_head"],
}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Graphs and their counts are of one test; torch's choice of kernels is that of 2 threads."""
    torch._dynamo.reset()
    counters.clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


class Toy(nn.Module):
    """A part on maps and a part on regions."""

    def __init__(self) -> None:
        super().__init__()
        self.rpn_head = StandardRPNHead(4, 3)
        self.mask_head = MaskRCNNConvUpsampleHead(4, 2, conv_dim=4, num_conv=1)

    def forward(self, maps: list[torch.Tensor], regions: torch.Tensor) -> list[torch.Tensor]:
        logits, deltas = self.rpn_head(maps)
        return [*logits, *deltas, self.mask_head(regions)]


def inputs(batch: int, height: int, width: int, regions: int) -> tuple:
    maps = [torch.randn(batch, 4, height // k, width // k) for k in (1, 2)]
    return maps, torch.randn(regions, 4, 7, 7)


def twins(**settings: str) -> tuple[Toy, Toy]:
    """A model, and a compiled copy of it."""
    plain = Toy()
    compiled = copy.deepcopy(plain)
    compile_model(compiled, backend="eager", **settings)
    return plain, compiled


def demo_cfg(name: str):
    cfg = get_cfg()
    cfg.merge_from_file(str(DEMO / f"{name}.yaml"))
    return cfg


def test_graphs_serve_all_sizes():
    plain, compiled = twins()
    with torch.no_grad():
        compiled(*inputs(1, 4, 4, 16))  # as many rows as columns and channels
        compiled(*inputs(2, 4, 4, 7))
    assert counters["stats"]["unique_graphs"] == 3  # maps of one image, of several; regions
    assert not counters["graph_break"]
    sizes = [(1, 8, 12, 30), (1, 16, 10, 1), (3, 6, 22, 0), (2, 8, 8, 2), (5, 14, 4, 100)]
    with torch.compiler.set_stance("fail_on_recompile"), torch.no_grad():
        for size in sizes:
            batch = inputs(*size)
            torch.testing.assert_close(compiled(*batch), plain(*batch))


def test_gradients_are_the_same():
    models = twins()
    batch = inputs(2, 8, 12, 20)
    for model in models:
        torch.stack([x.square().sum() for x in model(*batch)]).sum().backward()
    plain, compiled = ([p.grad for p in model.parameters()] for model in models)
    torch.testing.assert_close(compiled, plain)


def test_state_dicts_do_not_change():
    plain, compiled = twins()
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        pytest.param(lambda model: pickle.loads(pickle.dumps(model)), marks=pytest.mark.slow),
    ],
)
def test_a_copy_is_compiled_and_has_weights_of_its_own(duplicate):
    plain, compiled = twins()
    twin = duplicate(compiled)
    nn.init.zeros_(twin.mask_head.predictor.weight)
    batch = inputs(2, 8, 12, 20)
    assert not twin(*batch)[-1].any()
    assert counters["stats"]["unique_graphs"] == 2
    torch.testing.assert_close(compiled(*batch), plain(*batch))


@pytest.mark.slow
def test_with_cuda_graphs_maps_keep_their_size():
    _, compiled = twins(mode="reduce-overhead")
    with torch.no_grad():
        for size in [(1, 4, 4, 17), (1, 4, 4, 29), (1, 8, 4, 31)]:
            compiled(*inputs(*size))
    assert counters["stats"]["unique_graphs"] == 3  # maps of two sizes; regions


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match=r"mode must be one of default, .*, is 'fast'"):
        compile_model(Toy(), mode="fast")


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_dense_parts_of_each_system_are_found(name):
    cfg = demo_cfg(name)
    assert [part for part, *_ in find_parts(build_model(cfg))] == SYSTEMS[name]


def test_the_config_says_whether():
    cfg = demo_cfg("mask_rcnn")
    assert not isinstance(build_model(cfg).backbone.forward, Compiled)
    cfg.MODEL.COMPILE.ENABLED = True
    assert isinstance(build_model(cfg).backbone.forward, Compiled)


# Of one image torch has other kernels for the CPU where a map has few cells. These sizes are near
# enough to each other to have the same.
FIRST = [[(220, 250)], [(192, 160), (190, 150)]]
FURTHER = [[(250, 210)], [(240, 250)], [(150, 160), (192, 192), (170, 130)], [(300, 350)] * 2]


def image(size: tuple[int, int]) -> dict:
    boxes = [[10.0, 20.0, 70.0, 90.0], [60.0, 40.0, 128.0, 120.0]]
    targets = Targets(
        size,
        gt_boxes=Boxes(torch.tensor(boxes)),
        gt_classes=torch.tensor([1, 0]),
        gt_masks=PolygonMasks([[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes]),
    )
    pixels = torch.randint(256, (3, *size)).float()
    return {"image": pixels, "instances": targets, "sem_seg": torch.ones(size, dtype=torch.int64)}


def found_by(model: nn.Module, batch: list[dict]) -> list[dict]:
    model.eval()
    with torch.no_grad():
        return model(batch)


def sure_model(name: str) -> nn.Module:
    """The demo model of a system with random weights, some of whose scores are high."""
    model = build_model(demo_cfg(name))
    for parameter, weight in model.named_parameters():
        if parameter.endswith(("score.weight", "logits.weight")):
            weight.data *= 20
    return model


def found_fields(result: dict) -> dict[str, torch.Tensor]:
    """Of the detections of an image; of masks their share of it, since single pixels may differ."""
    fields = dict(result["instances"].get_fields())
    fields["pred_boxes"] = fields["pred_boxes"].tensor
    fields["pred_masks"] = fields["pred_masks"].float().mean((1, 2))
    return fields


def assert_same(ours: list[dict], expected: list[dict]) -> None:
    for one, other in zip(ours, expected, strict=True):
        found, wanted = found_fields(one), found_fields(other)
        assert len(wanted["scores"]) == len(found["scores"]) > 0
        # Detections of equal scores may have changed places.
        here, there = (
            torch.cat((x["pred_boxes"], 1000 * x["pred_classes"][:, None]), 1)
            for x in (found, wanted)
        )
        rows = torch.cdist(here, there).argmin(1)
        assert len(rows.unique()) == len(rows)
        wanted = {name: values[rows] for name, values in wanted.items()}
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)
        if "sem_seg" in one:
            torch.testing.assert_close(one["sem_seg"], other["sem_seg"], atol=1e-3, rtol=1e-4)


def assert_same_step(compiled: nn.Module, plain: nn.Module, batch: list[dict]) -> None:
    losses, gradients = [], []
    for model in (compiled, plain):
        torch.manual_seed(1)  # the same regions are drawn
        model.train().zero_grad()
        losses.append(dict(model(batch)))
        torch.stack(list(losses[-1].values())).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_predictions_of_each_system_without_compiling_anew(name):
    plain = sure_model(name)
    compiled = copy.deepcopy(plain)
    compile_model(compiled, backend="eager")
    for sizes in FIRST:
        batch = [image(size) for size in sizes]
        assert_same(found_by(compiled, batch), found_by(plain, batch))
    assert not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        for sizes in FURTHER:
            batch = [image(size) for size in sizes]
            assert_same(found_by(compiled, batch), found_by(plain, batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_rcnn", "panoptic_fpn", "yolact_plus", "blendmask"])
def test_training_steps_of_each_system_without_compiling_anew(name):
    plain = sure_model(name)
    compiled = copy.deepcopy(plain)
    compile_model(compiled, backend="aot_eager")
    assert_same_step(compiled, plain, [image(size) for size in FIRST[1]])
    assert not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same_step(compiled, plain, [image(size) for size in FURTHER[2]])


@pytest.mark.slow
def test_what_inductor_makes_predicts_and_learns_the_same():
    plain = Toy()
    compiled = copy.deepcopy(plain)
    compile_model(compiled)
    for batch in (inputs(2, 8, 12, 20), inputs(3, 6, 16, 33)):
        with torch.no_grad():
            torch.testing.assert_close(compiled(*batch), plain(*batch))
        gradients = []
        for model in (compiled, plain):
            model.zero_grad()
            torch.stack([x.square().sum() for x in model(*batch)]).sum().backward()
            gradients.append([p.grad for p in model.parameters()])
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
