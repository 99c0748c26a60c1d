import numpy as np
import pytest

from segdet.data import transforms as T

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def test_inputs_are_named_by_arguments():
    class FlipTowardsLabels(T.Augmentation):
        def get_transform(self, image, sem_seg):
            left = (sem_seg[:, : sem_seg.shape[1] // 2] > 0).sum()
            return T.HFlipTransform(image.shape[1]) if left else T.NoOpTransform()

    labels = np.zeros((12, 17), np.uint8)
    labels[:, 2] = 1
    inputs = T.AugInput(IMAGE, sem_seg=labels, boxes=np.array([[0.0, 0, 2, 2]]))
    transforms = inputs.apply_augmentations([FlipTowardsLabels(), FlipTowardsLabels()])
    assert [type(t).__name__ for t in transforms.transforms] == ["HFlipTransform", "NoOpTransform"]
    assert (inputs.image == IMAGE[:, ::-1]).all() and inputs.sem_seg[0].argmax() == 14
    assert inputs.boxes.tolist() == [[15, 0, 17, 2]]
    with pytest.raises(AttributeError, match="FlipTowardsLabels needs sem_seg"):
        T.AugInput(IMAGE).apply_augmentations([FlipTowardsLabels()])


def test_users_attributes_and_any_name_for_the_image():
    class Half(T.Augmentation):
        def __init__(self, factor=2):
            super().__init__()
            self._init(locals())

        def get_transform(self, img):
            h, w = img.shape[:2]
            return T.ResizeTransform(h, w, h // self.factor, w // self.factor)

    out, transforms = T.apply_augmentations([Half()], IMAGE)
    assert out.shape == (6, 8, 3) and len(transforms) == 1
    inputs, _ = T.apply_augmentations([Half()], T.StandardAugInput(IMAGE))
    assert inputs.image.shape == (6, 8, 3)


def test_lists_nest_and_transforms_are_augmentations():
    augs = T.AugmentationList([T.HFlipTransform(17), T.AugmentationList([T.VFlipTransform(12)])])
    inputs = T.AugInput(IMAGE)
    transforms = augs(inputs)
    assert (inputs.image == IMAGE[::-1, ::-1]).all() and len(transforms) == 2
    with pytest.raises(TypeError, match="expected an augmentation or a transform, got 5"):
        T.AugmentationList([5])


def test_refuses_what_is_no_image_or_no_transform():
    with pytest.raises(TypeError, match="must be an"):
        T.AugInput([1, 2])

    class Forgetful(T.Augmentation):
        def get_transform(self, image):
            pass

    with pytest.raises(TypeError, match=r"Forgetful\.get_transform gave None"):
        T.AugInput(IMAGE).apply_augmentations([Forgetful()])
