import torch

from segdet.modeling.postprocessing import detector_postprocess, requested_size, sem_seg_postprocess
from segdet.structures import Boxes, Detections


def detections(**extra):
    return Detections(
        (50, 100),
        pred_boxes=Boxes(torch.tensor([[10.0, 10, 30, 30], [120, 10, 130, 20], [-5, 0, 50, 60]])),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        pred_classes=torch.tensor([0, 1, 2]),
        **extra,
    )


def test_boxes_are_scaled_then_clipped_and_empties_go():
    before = detections()
    result = detector_postprocess(before, 100, 300)
    assert result.image_size == (100, 300)
    assert result.pred_boxes.tensor.tolist() == [[30, 20, 90, 60], [0, 0, 150, 100]]
    assert result.pred_classes.tolist() == [0, 2]
    assert before.pred_boxes.tensor[0].tolist() == [10, 10, 30, 30]


def test_masks_are_pasted_into_the_clipped_boxes():
    result = detector_postprocess(detections(pred_masks=torch.ones(3, 1, 4, 4)), 50, 100)
    assert result.pred_masks.shape == (2, 50, 100) and result.pred_masks.dtype == torch.bool
    assert result.pred_masks[0, 12:28, 10:30].all() and result.pred_masks[0, 10:30, 12:28].all()
    # Outside of its grid a mask fades to zero, which takes the corners.
    assert result.pred_masks[0].sum() == 400 - 4 * 3


def test_no_detections():
    result = detector_postprocess(detections(pred_masks=torch.ones(3, 1, 4, 4))[:0], 20, 30)
    assert len(result) == 0 and result.pred_masks.shape == (0, 20, 30)


def test_logits_lose_their_padding_before_they_are_resized():
    logits = torch.zeros(2, 6, 8)
    logits[:, 4:], logits[:, :, 5:] = 100.0, 100.0  # the padding
    logits[1, :4, :5] = torch.arange(5.0)
    result = sem_seg_postprocess(logits, (4, 5), 8, 10)
    assert result.shape == (2, 8, 10) and (result[0] == 0).all()
    # Bilinear without aligned corners: output pixel j lies at (j + 0.5) / 2 - 0.5.
    expected = ((torch.arange(10.0) + 0.5) / 2 - 0.5).clamp(0, 4)
    torch.testing.assert_close(result[1], expected.expand(8, 10))


def test_results_have_the_images_size_unless_another_is_asked_for():
    assert requested_size({"height": 7, "width": 9}, (3, 4)) == (7, 9)
    assert requested_size({}, (3, 4)) == (3, 4)
