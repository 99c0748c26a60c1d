"""FCOS's targets, losses and selection; golden numbers are those of AdelaiDet's code."""

import math

import pytest
import torch

from segdet.errors import ConfigError
from segdet.layers import ShapeSpec
from segdet.modeling.backbones import Backbone
from segdet.modeling.fcos import FCOSConfig
from segdet.modeling.fcos_head import OffsetDeformConv, Predictions, TopLayer
from segdet.structures import Boxes, ImageList, Targets

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


def predictions(batch=1, cls=-10.0, box=2.0, quality=0.0, num_classes=80, tower=None):
    def maps(channels, value):
        return [torch.full((batch, channels, *size), value) for size in SIZES]

    return Predictions(maps(num_classes, cls), maps(4, box), maps(1, quality), tower or [])


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


def test_a_location_may_have_several_classes_and_the_best_of_a_level_stay():
    found = predictions()
    for k in range(6):
        found.logits[0][0, k, 3, 4] = float(k)
    fcos = an_fcos(pre_nms_topk_test=4)
    (ours,) = fcos.test_selector(found, [SIZE])
    assert ours.pred_classes.tolist() == [5, 4, 3, 2]


def test_detections_that_score_like_the_last_stay():
    found = predictions()
    for k, (row, column) in enumerate([(3, 4), (3, 14), (3, 24), (3, 34), (13, 4)]):
        found.logits[0][0, 7, row, column] = 2.0 if k == 0 else 1.0
    fcos = an_fcos(post_nms_topk_test=3)
    (ours,) = fcos.test_selector(found, [SIZE])
    assert len(ours) == 5  # four share the third place
    assert len(an_fcos(post_nms_topk_test=1).test_selector(found, [SIZE])[0]) == 1


def test_suppression_is_within_a_class_and_above_the_threshold():
    found = predictions(box=4.0)
    for k, column in ((2, 4), (2, 5), (3, 5)):  # boxes 64 px wide, 8 px apart: IoU 7 / 9
        found.logits[0][0, k, 10, column] = 2.0 + column
    (ours,) = an_fcos().test_selector(found, [SIZE])
    assert sorted(ours.pred_classes.tolist()) == [2, 3]
    assert len(an_fcos(nms_th=0.8).test_selector(found, [SIZE])[0]) == 3


def test_boxes_are_not_clipped_and_images_keep_their_detections():
    found = predictions(batch=2)
    found.logits[3][1, 4, 0, 0] = 3.0  # of p6, around (32, 32)
    none, one = an_fcos().test_selector(found, [SIZE, (200, 300)])
    assert len(none) == 0 and one.image_size == (200, 300)
    assert one.pred_boxes.tensor.tolist() == [[-96, -96, 160, 160]]


def test_no_detections_have_fields_of_the_right_shape():
    tower = [torch.zeros(1, 4, *size) for size in SIZES]
    (none,) = an_fcos().test_selector(predictions(tower=tower), [SIZE], TopLayer(4, 6))
    assert none.pred_boxes.tensor.shape == (0, 4) and none.scores.shape == (0,)
    assert none.pred_classes.dtype == torch.int64 and none.top_feats.shape == (0, 6)


def test_a_box_that_is_no_number_is_left_out():
    found = golden_scores()
    found.ltrb[0][0, 2, 3, 4] = float("inf")
    found.quality[1][0, 0, 2, 2] = float("nan")
    (ours,) = an_fcos().test_selector(found, [SIZE])
    assert len(ours) == 0


def test_detections_carry_the_top_features_of_their_locations():
    found = golden_scores()
    found = found._replace(tower=[torch.randn(1, 4, *size) for size in SIZES])
    top_layer = TopLayer(4, 6)
    (ours,) = an_fcos().test_selector(found, [SIZE], top_layer)
    cells = [(0, 3, 4), (1, 2, 2), (0, 3, 4)]
    expected = [top_layer(found.tower[k])[0, :, row, column] for k, row, column in cells]
    torch.testing.assert_close(ours.top_feats, torch.stack(expected))


def test_positives_carry_the_top_features_of_their_locations():
    tower, top_layer = [torch.randn(2, 4, *size) for size in SIZES], TopLayer(4, 5)
    found = predictions(2, cls=-4.6, box=1.0, tower=tower)
    _, features = an_fcos().compare(found, golden_targets(), top_layer)
    assert features.features.shape == (38, 5) and features.gt_index.shape == (38,)
    assert set(features.gt_index.tolist()) == {0, 1, 2, 3, 4}
    assert features.centerness.sum().item() == pytest.approx(25.582674, abs=1e-5)
    features.features.sum().backward()
    assert top_layer.bias.grad.tolist() == [38] * 5
    assert an_fcos().compare(predictions(2), golden_targets())[1] is None


def test_without_objects_the_top_features_are_in_the_graph():
    tower, top_layer = [torch.randn(1, 4, *s).requires_grad_() for s in SIZES], TopLayer(4, 5)
    _, features = an_fcos().compare(predictions(tower=tower), [a_target()], top_layer)
    assert features.features.shape == (0, 5)
    features.features.sum().backward()
    assert all(x.grad is not None for x in [*tower, *top_layer.parameters()])


def an_fcos_on_maps(**settings):
    settings = {"num_classes": 3, "num_cls_convs": 1, "num_box_convs": 1, **settings}
    torch.manual_seed(0)
    fcos = FCOSConfig(**settings).build(Maps(64))
    features = {f"p{k}": torch.randn(2, 64, *size) for k, size in enumerate(SIZES, start=3)}
    return fcos, ImageList(torch.zeros(2, 3, *SIZE), [SIZE, SIZE]), features


def test_training_proposals_are_detections_without_gradient():
    fcos, images, features = an_fcos_on_maps(inference_th_train=0.0, post_nms_topk_train=9)
    features = {name: x.requires_grad_() for name, x in features.items()}
    proposals, losses = fcos.train()(images, features, golden_targets_of_three())
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    assert [len(p) for p in proposals] == [9, 9]
    for p in proposals:
        assert not p.proposal_boxes.tensor.requires_grad and not p.objectness_logits.requires_grad
        assert (p.objectness_logits.diff() <= 0).all()
    losses.total().backward()
    detections, none = fcos.eval()(images, features)
    assert none == {} and [len(d) for d in detections] == [0, 0]  # its own thresholds


def golden_targets_of_three():
    targets = golden_targets()
    for target in targets:
        target.gt_classes = target.gt_classes % 3
    return targets


def test_a_top_layer_does_not_change_the_detections():
    fcos, images, features = an_fcos_on_maps(inference_th_test=0.0)
    plain = fcos.predict(images, features)
    with_top = fcos.predict(images, features, TopLayer(64, 5))
    for a, b in zip(plain, with_top, strict=True):
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert b.top_feats.shape == (len(a), 5) and not a.has("top_feats")


def test_real_time_models_end_in_an_open_level():
    fcos = FCOSConfig(
        in_features=("p3", "p4", "p5"),
        fpn_strides=(8, 16, 32),
        sizes_of_interest=(64, 128),
        num_share_convs=3,
        num_cls_convs=0,
        num_box_convs=0,
    ).build(Maps(strides=STRIDES[:3]))
    positives = fcos.matcher([(32, 40), (16, 20), (8, 10)], [a_target([[0, 0, 319, 255]], [0])])
    assert positives.counts[:2] == (0, 0) and positives.counts[2] > 0
    assert fcos.matcher.ranges[-1] == (128, math.inf)


def test_the_originals_deformable_towers():
    def convs(fcos):
        towers = (fcos.fcos_head.share_tower, fcos.fcos_head.cls_tower, fcos.fcos_head.bbox_tower)
        return [sum(isinstance(x, OffsetDeformConv) for x in tower) for tower in towers]

    section = FCOSConfig(use_deformable=True)
    assert convs(section.build(Maps())) == [0, 1, 1]  # AdelaiDet's
    assert convs(section.build(Maps(), deformable=(0, 0, 4))) == [0, 0, 4]  # CenterMask2's
    assert convs(FCOSConfig().build(Maps(), deformable=(0, 0, 4))) == [0, 0, 0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"use_relu": False}, r"USE_RELU must be True"),
        ({"sizes_of_interest": (64,)}, r"SIZES_OF_INTEREST must have one value less"),
    ],
)
def test_unusable_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        FCOSConfig(**settings)


def test_strides_must_be_those_of_the_maps():
    with pytest.raises(ConfigError, match=r"FPN_STRIDES must be those of .*\[8, 16, 32, 64, 128\]"):
        FCOSConfig(fpn_strides=(4, 8, 16, 32, 64)).build(Maps())
    with pytest.raises(ConfigError, match=r"FCOS.IN_FEATURES: no feature 'p7'"):
        FCOSConfig().build(Maps(strides=STRIDES[:4]))
