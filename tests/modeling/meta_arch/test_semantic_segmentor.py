import pytest
import torch
import torch.nn.functional as F

from segdet.errors import DataError
from segdet.modeling import SemanticSegmentor, build_model


@pytest.fixture
def model(tiny_cfg):
    return build_model(tiny_cfg("SemanticSegmentor"))


def test_labels_are_padded_as_the_images_are_with_the_ignored_one(model, image):
    one, other = image(size=(40, 64)), image(size=(64, 30))
    labels = model.read_targets([one, other])
    assert labels.dtype == torch.int64
    assert labels.shape[-2:] == model.preprocess_image([one, other]).tensor.shape[-2:] == (64, 64)
    assert torch.equal(labels[0, :40], one["sem_seg"]) and (labels[0, 40:] == 255).all()
    assert torch.equal(labels[1, :, :30], other["sem_seg"]) and (labels[1, :, 30:] == 255).all()


@torch.no_grad()
def test_results_are_the_heads_logits_without_padding_at_the_asked_size(model, image):
    one = image(size=(50, 70))
    images = model.eval().preprocess_image([one])
    logits = model.sem_seg_head.predict(model.backbone(images.tensor))
    assert logits.shape == (1, 5, 64, 96)
    expected = F.interpolate(logits[..., :50, :70], (128, 100), mode="bilinear")[0]
    (result,) = model([one])
    assert list(result) == ["sem_seg"] and torch.equal(result["sem_seg"], expected)
    del one["height"], one["width"]
    torch.testing.assert_close(model([one])[0]["sem_seg"], logits[0, :, :50, :70])


def test_a_label_map_that_does_not_fit_is_named(model, image):
    one = image(size=(64, 64))
    one["image_id"], one["sem_seg"] = "a.jpg", one["sem_seg"] + 1
    with pytest.raises(DataError, match=r"image a.jpg: `sem_seg` has labels \[5, 256\]; they"):
        model.train()([one])


def test_it_has_detectron2s_name(model):
    assert isinstance(model, SemanticSegmentor) and type(model).__name__ == "SemanticSegmentor"
