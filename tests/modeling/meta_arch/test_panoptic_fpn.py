import numpy as np
import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling import PanopticFPN, build_model
from segdet.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from segdet.structures import Detections

SIZE = (24, 31)


def detections(masks, scores, classes=None):
    scores = torch.as_tensor(scores, dtype=torch.float32)
    return Detections(
        tuple(masks.shape[1:]),
        scores=scores,
        pred_classes=torch.zeros(len(scores), dtype=torch.int64) if classes is None else classes,
        pred_masks=masks,
    )


def combine(found, labels, overlap=0.5, area=4, score=0.5):
    return combine_semantic_and_instance_outputs(found, labels, overlap, area, score)


def combine_by_definition(scores, classes, masks, labels, overlap, area_limit, score_limit):
    """The merge of the paper's section 3.1 with detectron2's numbers, pixel by pixel."""
    height, width = labels.shape
    result, segments = [[0] * width for _ in range(height)], []
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    for row in order:
        pixels = [(y, x) for y in range(height) for x in range(width) if masks[row][y][x]]
        taken = [p for p in pixels if result[p[0]][p[1]] != 0]
        if scores[row] < score_limit or not pixels or len(taken) / len(pixels) > overlap:
            continue
        for y, x in set(pixels) - set(taken):
            result[y][x] = len(segments) + 1
        segments.append(
            {
                "id": len(segments) + 1,
                "isthing": True,
                "score": scores[row],
                "category_id": classes[row],
                "instance_id": row,
            }
        )
    free = {(y, x) for y in range(height) for x in range(width) if result[y][x] == 0}
    for category in range(1, 256):
        pixels = [p for p in free if labels[p[0]][p[1]] == category]
        if not pixels or len(pixels) < area_limit:
            continue
        for y, x in pixels:
            result[y][x] = len(segments) + 1
        segments.append(
            {
                "id": len(segments) + 1,
                "isthing": False,
                "category_id": category,
                "area": len(pixels),
            }
        )
    return np.array(result), segments


def a_random_case(rng):
    """Rectangles and speckles, some empty, alike or of equal scores; stuff in blocks, or none."""
    height, width = rng.integers(1, 13, size=2)
    number = int(rng.choice([0, 1, 2, 5, 9]))
    masks = np.zeros((number, height, width), dtype=bool)
    for mask in masks:
        kind = rng.integers(4)
        if kind == 0:
            mask[...] = rng.random(mask.shape) < 0.4
        elif kind < 3:
            (y0, y1), (x0, x1) = (np.sort(rng.integers(0, n + 1, size=2)) for n in mask.shape)
            mask[y0:y1, x0:x1] = True
    if number > 1 and rng.random() < 0.3:
        masks[1] = masks[0]
    scores = rng.choice([0.2, 0.5, 0.50001, 0.7, 0.9], size=number).astype(np.float32)
    blocks = rng.integers(0, rng.choice([1, 2, 5]), size=(height // 4 + 1, width // 4 + 1))
    labels = np.kron(blocks, np.ones((4, 4), dtype=np.int64))[:height, :width]
    settings = rng.choice([0.0, 0.3, 0.5, 1.0]), int(rng.choice([0, 1, 16, 20])), 0.5
    return scores, rng.integers(0, 80, size=number), masks, labels, settings


@pytest.mark.parametrize("seed", range(10))
def test_the_merge_matches_definition(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        scores, classes, masks, labels, settings = a_random_case(rng)
        found = detections(torch.from_numpy(masks), scores, torch.from_numpy(classes))
        ours, segments = combine(found, torch.from_numpy(labels), *settings)
        expected = combine_by_definition(
            scores.tolist(), classes.tolist(), masks, labels, *settings
        )
        assert ours.dtype == torch.int32 and ours.shape == labels.shape
        np.testing.assert_array_equal(ours.numpy(), expected[0])
        assert segments == expected[1]
        assert all(type(segment["isthing"]) is bool for segment in segments)


def test_nothing_found_is_void():
    found = detections(torch.zeros(0, *SIZE, dtype=torch.bool), [])
    panoptic_seg, segments = combine(found, torch.zeros(SIZE, dtype=torch.int64))
    assert (panoptic_seg == 0).all() and segments == []


def test_a_half_taken_instance_stays_and_gets_what_is_free():
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, :, :10], masks[1, :, 5:15] = True, True
    panoptic_seg, segments = combine(detections(masks, [0.9, 0.8]), torch.zeros(SIZE).long())
    assert [segment["instance_id"] for segment in segments] == [0, 1]
    assert (panoptic_seg[:, :10] == 1).all() and (panoptic_seg[:, 10:15] == 2).all()
    masks[1, 0, 4] = True  # now more than half of it is taken
    assert len(combine(detections(masks, [0.9, 0.8]), torch.zeros(SIZE).long())[1]) == 1


def test_of_equal_scores_the_earlier_instance_is_in_front():
    masks = torch.ones(40, *SIZE, dtype=torch.bool)
    panoptic_seg, segments = combine(detections(masks, [0.7] * 40), torch.zeros(SIZE).long())
    assert [segment["instance_id"] for segment in segments] == [0] and (panoptic_seg == 1).all()


def test_thresholds_are_met_by_equality():
    masks = torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[0, 0, 0] = True
    labels = torch.zeros(SIZE, dtype=torch.int64)
    labels[10, :4], labels[20, :3] = 7, 8
    found = detections(masks, [0.5])
    segments = combine(found, labels)[1]
    assert [(one["isthing"], one["category_id"]) for one in segments] == [(True, 0), (False, 7)]


@pytest.fixture
def cfg(tiny_cfg):
    cfg = tiny_cfg("PanopticFPN")
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.0
    return cfg


@torch.no_grad()
def test_results_are_detectron2s(cfg, image):
    model = build_model(cfg).eval()
    assert isinstance(model, PanopticFPN)
    for result in model([image(), image(size=(50, 70))]):
        assert list(result) == ["sem_seg", "instances", "panoptic_seg"]
        found, sem_seg = result["instances"], result["sem_seg"]
        assert found.pred_masks.shape == (len(found), 128, 100) and sem_seg.shape == (5, 128, 100)
        panoptic_seg, segments = result["panoptic_seg"]
        assert panoptic_seg.shape == (128, 100) and panoptic_seg.dtype == torch.int32
        ids = [segment["id"] for segment in segments]
        assert ids == list(range(1, len(ids) + 1))
        assert {*panoptic_seg.unique().tolist(), 0} == {*ids, 0}
        for one in segments:
            pixels = panoptic_seg == one["id"]
            if one["isthing"]:
                row = one["instance_id"]
                assert not (pixels & ~found.pred_masks[row]).any()
                assert one["category_id"] == found.pred_classes[row]
                assert one["score"] == found.scores[row]
            else:
                assert (sem_seg.argmax(0)[pixels] == one["category_id"]).all()
                assert one["area"] == pixels.sum()


def test_the_merges_settings_are_the_configs(tiny_cfg):
    cfg = tiny_cfg("PanopticFPN")
    keys = {"OVERLAP_THRESH": 0.3, "STUFF_AREA_LIMIT": 9, "INSTANCES_CONFIDENCE_THRESH": 0.6}
    for key, value in keys.items():
        cfg.MODEL.PANOPTIC_FPN.COMBINE[key] = value
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[0, :, :5], masks[1, 6:, 3:], masks[2, 0, 5:] = True, True, True
    labels = torch.zeros(10, 10, dtype=torch.int64)
    labels[0, 6:9], labels[1:5, 6:9] = 1, 2
    found = detections(masks, [0.9, 0.8, 0.59])
    combine = build_model(cfg).combine
    assert [one["id"] for one in combine(found, labels)[1]] == [1, 2, 3]
    masks[1, 5, :5] = True  # 13 of 33 pixels are taken, more than 0.3
    assert [one["isthing"] for one in combine(found, labels)[1]] == [True, False]


@torch.no_grad()
def test_parts_are_without_padding(cfg, image):
    model = build_model(cfg).eval()
    parts = model.predict(model.preprocess_image([image(size=(40, 64)), image(size=(64, 30))]))
    assert [tuple(one.sem_seg.shape) for one in parts] == [(5, 40, 64), (5, 64, 30)]
    assert [one.instances.image_size for one in parts] == [(40, 64), (64, 30)]


@torch.no_grad()
def test_without_the_merge(cfg, image):
    cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = False
    assert list(build_model(cfg).eval()([image()])[0]) == ["sem_seg", "instances"]
    cfg.MODEL.MASK_ON = False
    assert "loss_mask" not in build_model(cfg).train()([image((5, 5, 40, 50))])


def test_the_instance_weight_is_of_the_heads_alone(cfg, image):
    model = build_model(cfg)
    batch = [image((5, 5, 40, 50))]

    def losses():
        torch.manual_seed(0)  # for the sampling of regions
        return model.losses(model.preprocess_image(batch), model.read_targets(batch))

    before = losses()
    model.instance_loss_weight = 0.25
    after = losses()
    weights = {"loss_cls": 0.25, "loss_box_reg": 0.25, "loss_mask": 0.25}
    for name, loss in before.items():
        torch.testing.assert_close(after[name], loss * weights.get(name, 1.0), rtol=1e-4, atol=1e-6)
    assert before.metrics.keys() == after.metrics.keys() != set()
    cfg.MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT = 0.25
    assert build_model(cfg).instance_loss_weight == 0.25


@pytest.mark.parametrize("kind", ["instances", "sem_seg"])
def test_missing_annotation_is_named(cfg, image, kind):
    one = image()
    del one[kind]
    with pytest.raises(ValueError, match=rf"training needs `{kind}`; .* images \[0\] have none"):
        build_model(cfg).train()([one])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MASK_ON", False, "COMBINE.ENABLED needs masks: set MODEL.MASK_ON"),
        ("LOAD_PROPOSALS", True, "LOAD_PROPOSALS does not work with Panoptic FPN"),
    ],
)
def test_settings_that_do_not_fit_are_refused(cfg, key, value, message):
    cfg.MODEL[key] = value
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)
