import numpy as np
import pytest

from segdet.data import transforms as T

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _seeded_numpy():
    np.random.seed(0)


def many(augmentation, image=IMAGE, times=200):
    return [augmentation.get_transform(image) for _ in range(times)]


@pytest.mark.parametrize(
    "size, short, longest, expected",
    [
        # specs/data.md
        ((480, 640), 800, 1333, (800, 1067)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((333, 500), 800, 1333, (800, 1201)),
        ((100, 1000), 800, 1333, (133, 1333)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((600, 600), 800, 1333, (800, 800)),
        ((1, 1), 800, 1333, (800, 800)),
        ((1, 5000), 800, 1333, (1, 1333)),
        ((5000, 1), 800, 1333, (1333, 1)),
        ((20000, 3), 2, 4, (4, 1)),
    ],
)
def test_shortest_edge_sizes(size, short, longest, expected):
    assert T.ResizeShortestEdge.get_output_shape(*size, short, longest) == expected


def test_shortest_edge_draws():
    drawn = {t.new_h for t in many(T.ResizeShortestEdge((30, 33), sample_style="range"))}
    assert drawn == {30, 31, 32, 33}
    drawn = {t.new_h for t in many(T.ResizeShortestEdge((30, 50, 70), sample_style="choice"))}
    assert drawn == {30, 50, 70}
    assert isinstance(T.ResizeShortestEdge(0).get_transform(IMAGE), T.NoOpTransform)
    with pytest.raises(ValueError, match="sample_style"):
        T.ResizeShortestEdge(1, sample_style="list")
    with pytest.raises(ValueError, match="low and a high end"):
        T.ResizeShortestEdge((1, 2, 3))


def test_flip_happens_as_often_as_asked():
    flips = [isinstance(t, T.HFlipTransform) for t in many(T.RandomFlip(0.25), times=2000)]
    assert 0.2 < np.mean(flips) < 0.3
    assert isinstance(many(T.RandomFlip(1, horizontal=False, vertical=True))[0], T.VFlipTransform)
    with pytest.raises(ValueError, match="two RandomFlips"):
        T.RandomFlip(horizontal=True, vertical=True)


def test_resize_to_a_size():
    for shape, expected in ((7, (7, 7)), ((7, 9), (7, 9))):
        transform = T.Resize(shape).get_transform(IMAGE)
        assert (transform.new_h, transform.new_w) == expected


@pytest.mark.parametrize(
    "kind, size, lowest, highest",
    [
        ("absolute", (20, 30), (20, 30), (20, 30)),
        ("absolute", (500, 30), (60, 30), (60, 30)),
        ("absolute_range", (20, 70), (20, 20), (60, 70)),
        ("relative", (0.5, 0.25), (30, 20), (30, 20)),
        ("relative_range", (0.5, 0.25), (30, 20), (60, 80)),
    ],
)
def test_crop_sizes_and_places(kind, size, lowest, highest):
    crops = many(T.RandomCrop(kind, size), times=2000)
    sizes = np.array([(c.h, c.w) for c in crops])
    assert (sizes.min(0) == lowest).all() and (sizes.max(0) == highest).all()
    places = np.array([(c.y0, c.x0) for c in crops])
    assert (places.min(0) == 0).all() and (places + sizes <= [60, 80]).all()
    assert ((places + sizes).max(0) == [60, 80]).all()
    image, _ = T.apply_augmentations([crops[0]], IMAGE)
    assert image.shape[:2] == tuple(sizes[0])


@pytest.mark.parametrize("kind", T.RandomCrop.TYPES)
def test_crop_of_one_pixel_keeps_it(kind):
    size = (300, 400) if kind.startswith("absolute") else (0.3, 0.3)
    for crop in many(T.RandomCrop(kind, size), np.zeros((1, 1, 3), np.uint8), times=20):
        assert (crop.x0, crop.y0, crop.w, crop.h) == (0, 0, 1, 1)


def test_crop_refuses_unknown_types():
    with pytest.raises(ValueError, match="crop_type must be one of absolute"):
        T.RandomCrop("half", (1, 1))


def test_large_scale_jitter_gives_one_size():
    augs = [T.ResizeScale(0.1, 2.0, 64, 64), T.FixedSizeCrop((64, 64))]
    sizes = set()
    for _ in range(100):
        inputs = T.AugInput(IMAGE, sem_seg=IMAGE[:, :, 0] % 3)
        resize, *_ = T.AugmentationList(augs)(inputs).transforms
        sizes.add(resize.new_w)
        assert abs(resize.new_h / resize.new_w - 60 / 80) < 0.1
        assert inputs.image.shape == (64, 64, 3)
        if resize.new_h < 60:
            assert (inputs.image[-1] == 128).all() and (inputs.sem_seg[-1] == 255).all()
    assert min(sizes) < 12 and 118 < max(sizes) <= 128


def test_fixed_size_crop_moves_along_the_diagonal():
    crops = many(T.FixedSizeCrop((20, 20), pad=False))
    for crop in crops:
        assert abs(crop.y0 / 40 - crop.x0 / 60) < 0.03
    assert {crop.y0 for crop in crops} > {1, 20, 39}


def test_colour_augmentations():
    grey = np.full((4, 5, 3), 100, np.uint8)
    colour = grey.copy()
    colour[..., 0] = 200
    weight = {"intensity_min": 0.5, "intensity_max": 0.5}
    assert (T.RandomBrightness(**weight).get_transform(grey).apply_image(grey) == 50).all()
    assert (T.RandomContrast(**weight).get_transform(grey).apply_image(grey) == 100).all()
    assert (T.RandomSaturation(**weight).get_transform(grey).apply_image(grey) >= 99).all()
    pale = T.RandomSaturation(**weight).get_transform(colour).apply_image(colour)
    assert pale[0, 0].tolist() == [164, 114, 114]  # luma is 129.9
    lit = T.RandomLighting(0.0).get_transform(grey)
    assert (lit.apply_image(grey) == 100).all()
    with pytest.raises(ValueError, match="three channels"):
        T.RandomSaturation(0, 1).get_transform(grey[..., :1])


def test_random_apply():
    transforms = [
        T.RandomApply(T.HFlipTransform(80), prob=0.25)(T.AugInput(IMAGE)) for _ in range(1000)
    ]
    assert 0.2 < np.mean([isinstance(t, T.HFlipTransform) for t in transforms]) < 0.3
    with pytest.raises(ValueError, match="prob"):
        T.RandomApply(T.NoOpTransform(), prob=2)


def test_random_resize_chooses_a_size():
    aug = T.RandomResize([(10, 20), (30, 15)])
    sizes = {
        aug.get_transform(np.zeros((5, 5))).apply_image(IMAGE[:5, :5]).shape for _ in range(20)
    }
    assert sizes == {(10, 20, 3), (30, 15, 3)}


def test_category_area_constraint():
    image = np.zeros((20, 40, 3), np.uint8)
    labels = np.zeros((20, 40), np.uint8)
    labels[:, 20:] = 1
    labels[:, 38:] = 255
    aug = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 10), 0.8, ignored_category=255)
    shares = []
    for _ in range(40):
        crop = aug.get_transform(image, labels).apply_segmentation(labels)
        shares.append(max((crop == k).mean() for k in (0, 1)))
    assert np.mean(np.array(shares) < 0.8) > 0.6  # of single draws one in five
    free = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 10))
    assert any(
        (free.get_transform(image, labels).apply_segmentation(labels) == 0).all() for _ in range(40)
    )
    aug_input = T.AugInput(image, sem_seg=labels)
    aug(aug_input)
    assert aug_input.image.shape == (20, 10, 3) and aug_input.sem_seg.shape == (20, 10)


def test_crop_with_instance_holds_the_centre_of_one():
    boxes = np.array([[0.0, 0, 8, 8], [70, 50, 80, 60]])
    aug = T.RandomCropWithInstance("absolute", (20, 20))
    crops = [aug.get_transform(IMAGE, boxes) for _ in range(200)]
    centres = [(4, 4), (75, 55)]
    held = [
        [c.x0 <= x <= c.x0 + c.w and c.y0 <= y <= c.y0 + c.h for x, y in centres] for c in crops
    ]
    assert all(any(row) for row in held) and np.mean(held, axis=0).min() > 0.3
    places = {aug.get_transform(IMAGE, np.zeros((0, 4))).x0 for _ in range(200)}
    assert len(places) > 40, "without objects any place will do"


def test_min_iou_crop_keeps_the_overlap():
    image = np.zeros((60, 80, 3), np.uint8)
    boxes = np.array([[10.0, 10, 50, 50]])
    aug = T.MinIoURandomCrop(min_ious=(0.7,))
    kinds = set()
    for _ in range(60):
        crop = aug.get_transform(image, boxes)
        kinds.add(type(crop).__name__)
        if isinstance(crop, T.CropTransform):
            assert 0.5 <= crop.h / crop.w <= 2 and crop.w >= 23 and crop.h >= 17
            assert crop.x0 < 30 < crop.x0 + crop.w and crop.y0 < 30 < crop.y0 + crop.h
    assert kinds == {"NoOpTransform", "CropTransform"}
    assert T.MinIoURandomCrop().get_transform(image, np.zeros((0, 4))) is not None
    with pytest.raises(AttributeError, match="needs boxes"):
        aug(T.AugInput(image))
