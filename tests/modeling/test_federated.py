"""The federated loss against its definition, and where its frequencies come from."""

import math

import pytest
import torch

from segdet.config import get_cfg
from segdet.data import MetadataCatalog
from segdet.data.detection_utils import get_fed_loss_cls_weights
from segdet.errors import ConfigError, DataError
from segdet.modeling import build_model
from segdet.modeling.box_head import BoxHeadConfig
from segdet.modeling.federated import FederatedClasses
from segdet.structures import Boxes, Proposals

NAME = "federated_here"
COUNTS = [{"id": 9, "image_count": 100}, {"id": 2, "image_count": 4}, {"id": 5, "image_count": 16}]


@pytest.fixture(autouse=True)
def _clean_catalog():
    yield
    if NAME in MetadataCatalog:
        MetadataCatalog.remove(NAME)


def drawer(count, weights):
    federated = FederatedClasses(count)
    federated.weights = lambda: torch.tensor(weights)
    return federated


def test_present_classes_always_count_and_others_are_drawn_up_to_the_number():
    torch.manual_seed(0)
    federated = drawer(5, [1.0] * 10)
    for _ in range(20):
        counts = federated.draw(torch.tensor([3, 10, 3, 7, 10]), 10)
        assert counts[[3, 7]].tolist() == [1, 1]
        assert counts.sum() == 4  # the background is the fifth
    assert federated.draw(torch.arange(10), 10).sum() == 10  # more than 5, but all are present
    assert federated.draw(torch.zeros(0, dtype=torch.int64), 10).sum() == 5


def test_a_class_is_drawn_as_often_as_its_weight_says():
    torch.manual_seed(0)
    federated = drawer(2, [8.0, 3.0, 1.0, 0.0])
    drawn = sum(federated.draw(torch.tensor([0, 0]), 4) for _ in range(4000)) / 4000
    assert drawn[0] == 1 and drawn[3] == 0
    assert drawn[1].item() == pytest.approx(3 / 4, abs=0.03)
    assert drawn[2].item() == pytest.approx(1 / 4, abs=0.03)


def test_classes_without_images_are_not_drawn_even_if_too_few_remain():
    assert drawer(4, [1.0, 0.0, 0.0, 2.0]).draw(torch.tensor([4]), 4).tolist() == [1, 0, 0, 1]


def test_the_loss_is_the_binary_cross_entropy_of_the_classes_that_count():
    config = BoxHeadConfig(use_fed_loss=True, use_sigmoid_ce=True, fed_loss_num_classes=3)
    head = config.build_predictor(
        8, num_classes=4, score_thresh=0.05, nms_thresh=0.5, detections_per_image=5
    )
    assert head.federated is not None
    # Class 0 and the background are present; of the others only class 2 can be drawn.
    head.federated.weights = lambda: torch.tensor([5.0, 0.0, 1.0, 0.0])
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    boxes = Boxes(torch.tensor([[10.0, 10, 30, 50]]).repeat(3, 1))
    proposals = Proposals((60, 60), proposal_boxes=boxes, gt_boxes=boxes)
    proposals.gt_classes = torch.tensor([0, 4, 4])
    loss = head.losses(logits, torch.zeros(3, 16), [proposals])["loss_cls"]
    expected = 0.0
    for row, own in zip(logits.tolist(), [0, 4, 4], strict=True):
        for k in (0, 2):
            p = 1 / (1 + math.exp(-row[k]))
            expected -= math.log(p if own == k else 1 - p)
    assert loss.item() == pytest.approx(expected / 3, rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad != 0).any(0).tolist() == [True, False, True, False, False]


def tiny():
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", 3),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
            *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "DATASETS.TRAIN", (NAME,)),
            *("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True),
        ]
    )
    return cfg


def test_the_model_asks_for_the_counts_of_the_training_data_when_it_trains():
    """They are known once the data has been read, which comes after the model in a trainer."""
    predictor = build_model(tiny()).roi_heads.box_predictor
    with pytest.raises(DataError, match="'federated_here' has no class_image_count"):
        predictor.federated.draw(torch.tensor([0]), 3)
    MetadataCatalog.get(NAME).set(class_image_count=COUNTS)
    assert predictor.federated.draw(torch.tensor([0]), 3).tolist() == [1, 1, 1]
    assert predictor.federated.weights().tolist() == [2, 4, 10]  # by id, power 0.5
    assert get_fed_loss_cls_weights([NAME]).tolist() == [4, 16, 100]
    with pytest.raises(ConfigError, match=r"NUM_CLASSES is 80, but .* is of 3 classes"):
        predictor.federated.draw(torch.tensor([0]), 80)


def test_without_counts_training_is_refused():
    with pytest.raises(ConfigError, match="needs the number of images of each class"):
        FederatedClasses(3).draw(torch.tensor([0]), 3)
    with pytest.raises(ConfigError, match="FED_LOSS_NUM_CLASSES must be >= 1, is 0"):
        FederatedClasses(0)
    with pytest.raises(DataError, match=r"needs a data set in DATASETS\.TRAIN"):
        get_fed_loss_cls_weights(())
