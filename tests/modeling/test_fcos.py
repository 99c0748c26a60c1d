"""FCOS's targets, losses and selection; golden numbers are those of AdelaiDet's code."""

import math

import pytest
import torch

from segdet.layers import ShapeSpec
from segdet.modeling.backbones import Backbone
from segdet.modeling.fcos import FCOSConfig
from segdet.modeling.fcos_head import Predictions
from segdet.structures import Boxes, Targets

SIZE = (256, 320)
SIZES = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
STRIDES = (8, 16, 32, 64, 128)


class Maps(Backbone):
    """Has the maps of a pyramid and makes none."""

    def __init__(self, channels: int = 32, strides: tuple[int, ...] = STRIDES) -> None:
        super().__init__()
        names = [f"p{int(math.log2(stride))}" for stride in strides]
        self._shapes = {
            n: ShapeSpec(channels=channels, stride=s) for n, s in zip(names, strides, strict=True)
        }

    def forward(self, images):
        raise NotImplementedError

    def output_shape(self):
        return self._shapes


def a_target(boxes=(), classes=(), size=SIZE):
    return Targets(
        size,
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


def golden_targets():
    boxes = [[20, 30, 70, 90], [40, 40, 200, 220], [100, 10, 115, 25], [0, 0, 300, 250]]
    return [a_target(boxes, [1, 5, 7, 2]), a_target([[60, 60, 130, 100]], [3])]


def predictions(batch=1, cls=-10.0, box=2.0, quality=0.0, num_classes=80, top=None):
    def maps(channels, value):
        return [torch.full((batch, channels, *size), value) for size in SIZES]

    return Predictions(maps(num_classes, cls), maps(4, box), maps(1, quality), top or [])


def an_fcos(**settings):
    return FCOSConfig(**settings).build(Maps())


def test_golden_losses():
    found = predictions(2, cls=-4.59511985, box=1.0)
    losses, _ = an_fcos().compare(found, golden_targets())
    expected = {"loss_fcos_cls": 1.133795, "loss_fcos_loc": 0.894103, "loss_fcos_ctr": 0.693147}
    assert losses == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}


def test_golden_losses_with_iou_as_quality():
    found = predictions(2, cls=-4.59511985, box=1.0)
    losses, _ = an_fcos(box_quality="iou").compare(found, golden_targets())
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_iou"}
    assert losses["loss_fcos_loc"].item() == pytest.approx(0.884529, abs=1e-6)


def golden_scores():
    found = predictions()
    found.logits[0][0, 5, 3, 4] = 2.0
    found.logits[0][0, 6, 3, 4] = -2.9
    found.logits[1][0, 5, 2, 2] = 0.0
    return found


@pytest.mark.parametrize("thresh_with_ctr, count", [(False, 3), (True, 2)])
def test_golden_detections(thresh_with_ctr, count):
    fcos = an_fcos(thresh_with_ctr=thresh_with_ctr)
    (found,) = fcos.test_selector(golden_scores(), [SIZE])
    expected = [
        [20, 12, 52, 44, 5, 0.663625],
        [8, 8, 72, 72, 5, 0.5],
        [20, 12, 52, 44, 6, 0.161483],
    ]
    ours = torch.cat(
        (found.pred_boxes.tensor, found.pred_classes[:, None], found.scores[:, None]), dim=1
    )
    torch.testing.assert_close(ours, torch.tensor(expected[:count]), atol=1e-5, rtol=0)
