import copy
import pickle

import pytest
import torch

from segdet.structures import Boxes, Detections, Instances, PolygonMasks, Proposals, Targets


def three() -> Instances:
    return Instances(
        (4, 6),
        pred_boxes=Boxes([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]]),
        scores=torch.tensor([0.9, 0.5, 0.1]),
        names=["a", "b", "c"],
    )


def test_fields_are_attributes():
    instances = three()
    instances.pred_classes = torch.tensor([3, 4, 5])
    assert instances.image_size == (4, 6)
    assert len(instances) == 3
    assert instances.has("pred_classes") and not instances.has("pred_masks")
    assert instances.get("pred_classes") is instances.pred_classes
    assert list(instances.get_fields()) == ["pred_boxes", "scores", "names", "pred_classes"]
    instances.remove("names")
    del instances.pred_classes
    assert list(instances.get_fields()) == ["pred_boxes", "scores"]


def test_an_absent_field_is_named():
    with pytest.raises(
        AttributeError,
        match=r"Detections has no pred_keypoints \(it has pred_boxes, scores\)",
    ):
        Detections((4, 6), pred_boxes=Boxes([[0, 0, 1, 1]]), scores=torch.ones(1)).pred_keypoints  # noqa: B018
    with pytest.raises(AttributeError, match=r"Instances has no x \(it has no fields\)"):
        Instances((1, 1)).remove("x")
    assert not hasattr(Instances((1, 1)), "scores")


def test_fields_must_be_of_equal_length():
    instances = three()
    with pytest.raises(ValueError, match="field pred_classes has 2 entries, but pred_boxes has 3"):
        instances.pred_classes = torch.zeros(2)
    with pytest.raises(ValueError, match="field scores has 2 entries"):
        Instances((4, 6), pred_boxes=Boxes([[0, 0, 1, 1]]), scores=torch.zeros(2))
    instances.scores = torch.zeros(3)  # replacing is fine


def test_the_image_size_is_fixed():
    with pytest.raises(AttributeError, match="image_size is fixed"):
        three().image_size = (1, 1)


def test_without_fields_there_is_no_length():
    with pytest.raises(NotImplementedError, match="without fields has no length"):
        len(Instances((1, 1)))


def test_is_not_iterable():
    with pytest.raises(NotImplementedError, match="not iterable"):
        list(three())


@pytest.mark.parametrize(
    "index, expected",
    [
        (1, ["b"]),
        (-1, ["c"]),
        (slice(0, 2), ["a", "b"]),
        (slice(None, None, 2), ["a", "c"]),
        ([2, 0], ["c", "a"]),
        (torch.tensor([2, 2]), ["c", "c"]),
        (torch.tensor([True, False, True]), ["a", "c"]),
        (torch.zeros(3, dtype=torch.bool), []),
    ],
)
def test_indexing(index, expected):
    chosen = three()[index]
    assert chosen.names == expected
    assert len(chosen.pred_boxes) == len(chosen.scores) == len(expected)
    assert chosen.image_size == (4, 6)


@pytest.mark.parametrize("index", [3, -4])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match="out of range for 3 objects"):
        three()[index]


def test_cat_joins_every_kind_of_field():
    square = [[0.0, 0, 1, 0, 1, 1]]
    targets = Targets(
        (4, 6),
        gt_boxes=Boxes([[0, 0, 1, 1]]),
        gt_classes=torch.tensor([7]),
        gt_masks=PolygonMasks([square]),
        names=["x"],
    )
    joined = Instances.cat([targets, targets[:0], targets])
    assert isinstance(joined, Targets)
    assert joined.gt_classes.tolist() == [7, 7]
    assert len(joined.gt_masks) == len(joined.gt_boxes) == 2
    assert joined.names == ["x", "x"]
    assert Instances.cat([targets]) is targets


def test_cat_keeps_the_fields_of_the_first():
    first, second = three(), three()
    first.remove("names")
    assert not Instances.cat([first, second]).has("names")
    with pytest.raises(AttributeError, match="has no names"):
        Instances.cat([second, first])


def test_cat_refuses():
    with pytest.raises(ValueError, match="at least one"):
        Instances.cat([])
    with pytest.raises(ValueError, match=r"image sizes differ: \(4, 6\) and \(4, 7\)"):
        Instances.cat([three(), Instances((4, 7), scores=torch.zeros(1))])
    odd = Instances((1, 1), label=("a",))
    with pytest.raises(ValueError, match="field label of type tuple cannot be joined"):
        Instances.cat([odd, odd])


def test_roles_stay_what_they_are(device):
    proposals = Proposals((4, 6), objectness_logits=torch.arange(3.0))
    for same in (proposals[1:], proposals.to(device), Instances.cat([proposals, proposals])):
        assert isinstance(same, Proposals)
    assert proposals.to(device).objectness_logits.device.type == device


def test_to_leaves_other_fields_alone():
    moved = three().to("cpu")
    assert moved.names == ["a", "b", "c"] and isinstance(moved.pred_boxes, Boxes)


def test_pickles_copies_and_prints():
    instances = three()
    for same in (
        pickle.loads(pickle.dumps(instances)),
        copy.deepcopy(instances),
        copy.copy(instances),
    ):
        assert same.names == ["a", "b", "c"] and same.image_size == (4, 6)
    assert str(instances[:1]).startswith(
        "Instances(num_instances=1, image_height=4, image_width=6, fields=[pred_boxes: Boxes("
    )
    assert "num_instances=0" in repr(Instances((1, 1)))
