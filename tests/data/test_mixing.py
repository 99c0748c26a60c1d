from itertools import islice

import numpy as np
import pytest
import torch

from segdet.config.reader import defaults_of, read_section
from segdet.data.build import build_detection_train_loader
from segdet.data.mapper import InputConfig
from segdet.data.mixing import CopyPaste, MixedDataset, Mosaic, _with_bitmasks
from segdet.errors import ConfigError
from segdet.structures import BitMasks, Boxes, PolygonMasks, Targets

from .conftest import a_config


def a_sample(first_color: int, height: int = 60, width: int = 80, bits: bool = False) -> dict:
    """Rectangles that do not meet, each of a colour, which is also its class and its label."""
    corners = [(4.0, 6.0, 30.0, 26.0), (40.0, 10.0, 70.0, 50.0), (8.0, 34.0, 30.0, 56.0)]
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    colors = range(first_color, first_color + len(corners))
    for color, (x0, y0, x1, y1) in zip(colors, corners, strict=True):
        image[:, int(y0) : int(y1), int(x0) : int(x1)] = color
    masks = PolygonMasks(
        [[np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in corners]
    )
    targets = Targets(
        (height, width),
        gt_boxes=Boxes(corners),
        gt_classes=torch.tensor(list(colors)),
        gt_masks=BitMasks.from_polygon_masks(masks, height, width) if bits else masks,
    )
    return {"image": image, "instances": targets, "sem_seg": image[0].long()}


def check_masks_show_their_objects(sample: dict, around: int = 0) -> None:
    """Every mask is where its colour is in the image, but for `around` pixels at its border."""
    targets = _with_bitmasks(sample["instances"])
    assert len(targets), "something is left"
    for mask, box, color in zip(
        targets.gt_masks, targets.gt_boxes, targets.gt_classes.tolist(), strict=True
    ):
        seen = sample["image"][0] == color
        assert torch.equal(seen, sample["sem_seg"] == color) or around
        rows, columns = mask.nonzero().T
        tight = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (box - tight).abs().max() <= around
        if around == 0:
            assert torch.equal(mask, seen)
        else:
            wrong = (mask != seen).float()[None]
            assert -torch.nn.functional.max_pool2d(-wrong, 3, 1).max() < 1, "two pixels thick"


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("size", [(60, 80), (50, 90), (90, 64)])
def test_copy_paste(bits: bool, size: tuple[int, int]):
    mix, numbers = CopyPaste(1.0), set()
    for seed in range(12):
        np.random.seed(seed)
        mixed = mix(a_sample(10, bits=bits), [a_sample(100, *size)])
        assert mixed["image"].shape == (3, 60, 80)
        check_masks_show_their_objects(mixed)
        numbers.add(sum(k >= 100 for k in mixed["instances"].gt_classes.tolist()))
    assert {0, 1, 2} < numbers | {0}, "some objects are copied, some are not"


def test_copy_paste_drops_what_is_covered_and_copies_no_crowds():
    crowd = a_sample(100)
    crowd["instances"].gt_classes = torch.full((3,), -1)
    plain = a_sample(10)
    assert CopyPaste(1.0)(plain, [crowd]) is plain
    np.random.seed(1)
    mixed = CopyPaste(1.0)(a_sample(10), [a_sample(100)])
    classes = mixed["instances"].gt_classes.tolist()
    assert [k - 90 not in classes for k in classes if k >= 100], "the same places"


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_mosaic(scale: float):
    for seed in range(10):
        np.random.seed(seed)
        others = [a_sample(50), a_sample(100, 90, 70), a_sample(150, bits=seed % 2 == 0)]
        mixed = Mosaic(1.0, scale)(a_sample(10), others)
        assert mixed["image"].shape == (3, 60, 80) and mixed["sem_seg"].shape == (60, 80)
        check_masks_show_their_objects(mixed, around=0 if scale == 1 else 1)
        boxes = mixed["instances"].gt_boxes.tensor
        assert (boxes >= 0).all() and (boxes <= torch.tensor([80, 60, 80, 60])).all()
    assert len({k // 50 for k in mixed["instances"].gt_classes.tolist()}) > 1


def test_samples_without_objects():
    empty = a_sample(10)
    empty["instances"] = empty["instances"][:0]
    for mix in (CopyPaste(1.0), Mosaic(1.0, 0.5)):
        for one, other in ((empty, empty), (empty, a_sample(100)), (a_sample(10), empty)):
            mixed = mix(one, [other] * mix.others)
            assert mixed["instances"].has("gt_masks") and mixed["image"].shape == (3, 60, 80)


def mapped(record: dict) -> dict:
    return a_sample(record["color"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_stream_is_the_same_behind_a_resume_and_for_any_workers(num_workers: int):
    records = [{"color": 10 * i, "width": 80, "height": 60} for i in range(1, 12)]

    def loader(workers: int):
        mixes = [Mosaic(0.5, 0.5), CopyPaste(0.5)]
        arguments = {"mapper": mapped, "mixes": mixes, "total_batch_size": 2, "seed": 3}
        return build_detection_train_loader(records, num_workers=workers, **arguments)

    whole = [[s["image"] for s in batch] for batch in islice(loader(0), 8)]
    resumed = loader(num_workers)
    resumed.seek(5)
    for batch, expected in zip(islice(resumed, 3), whole[5:], strict=True):
        assert all(torch.equal(s["image"], e) for s, e in zip(batch, expected, strict=True))
    plain = [a_sample(one["color"])["image"] for one in records]
    assert any(not any(torch.equal(i, p) for p in plain) for batch in whole for i in batch)


def test_without_chance_nothing_is_mixed():
    records = MixedDataset([a_sample(10), a_sample(50)], [CopyPaste(0.0), Mosaic(0.0, 0.5)])
    assert len(records) == 2 and records[1]["instances"].gt_classes.tolist() == [50, 51, 52]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"INPUT.COPY_PASTE.PROB": 0.5}, "COPY_PASTE needs MODEL.MASK_ON"),
        ({"INPUT.MOSAIC.PROB": 0.5}, "MOSAIC needs MODEL.MASK_ON"),
        ({"INPUT.MOSAIC.PROB": 1.5}, r"MOSAIC.PROB must be float in \[0, 1\], is 1.5"),
        ({"INPUT.MOSAIC.SCALE": 0.0}, r"MOSAIC.SCALE must be float in \(0, 1\], is 0"),
        (
            {"INPUT.MOSAIC.PROB": 0.5, "MODEL.MASK_ON": True, "MODEL.KEYPOINT_ON": True},
            "switch MODEL.KEYPOINT_ON off",
        ),
        ({"INPUT.LSJ.ENABLED": True, "MODEL.BASIS_MODULE.LOSS_ON": True}, "LSJ pads pictures"),
        ({"INPUT.LSJ.MIN_SCALE": 3.0}, "LSJ.MIN_SCALE must be at most MAX_SCALE"),
        ({"INPUT.LSJ.ENABLED": True, "INPUT.SQUARE_SIZE": 550}, "both say the size"),
        ({"INPUT.COLOR.SATURATION": 0.1, "INPUT.FORMAT": "L"}, "with COLOR.SATURATION"),
    ],
)
def test_settings_that_cannot_be(changes: dict, message: str):
    cfg = a_config()
    cfg.merge_from_list([part for pair in changes.items() for part in pair])
    with pytest.raises(ConfigError, match=message):
        read_section(InputConfig, cfg, at="INPUT")


def test_config_builds_what_it_says():
    cfg = a_config()
    keys = {
        "INPUT.LSJ.ENABLED": True,
        "INPUT.COPY_PASTE.PROB": 0.5,
        "INPUT.MOSAIC.PROB": 0.25,
        "INPUT.COLOR.SATURATION": 0.4,
        "INPUT.RANDOM_ROTATION": 10.0,
        "MODEL.MASK_ON": True,
    }
    cfg.merge_from_list([part for pair in keys.items() for part in pair])
    section = read_section(InputConfig, cfg, at="INPUT")
    assert [(type(m), m.prob) for m in section.mixes()] == [(Mosaic, 0.25), (CopyPaste, 0.5)]
    names = [type(one).__name__ for one in section.augmentations(True)]
    assert names == [
        "ResizeScale",
        "FixedSizeCrop",
        "RandomRotation",
        "RandomSaturation",
        "RandomFlip",
    ]
    assert InputConfig().mixes() == [] and defaults_of(InputConfig).MOSAIC.PROB == 0
