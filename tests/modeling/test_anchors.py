import itertools
import math

import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling.anchors import AnchorGeneratorConfig, cell_anchors


def test_cell_anchors_of_size_32():
    expected = [
        [-22.6274, -11.3137, 22.6274, 11.3137],
        [-16, -16, 16, 16],
        [-11.3137, -22.6274, 11.3137, 22.6274],
    ]
    torch.testing.assert_close(
        cell_anchors([32], [0.5, 1, 2]), torch.tensor(expected), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_grid_matches_definition(offset):
    generator = AnchorGeneratorConfig(
        sizes=((8, 16),), aspect_ratios=((1.0, 2.0),), offset=offset
    ).build([4, 8])
    levels = generator([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)])
    assert [len(level) for level in levels] == [2 * 3 * 4, 1 * 2 * 4]
    expected = []
    for y, x in itertools.product(range(2), range(3)):
        for size, ratio in itertools.product((8, 16), (1.0, 2.0)):
            w = math.sqrt(size**2 / ratio)
            cx, cy = (x + offset) * 4, (y + offset) * 4
            expected.append([cx - w / 2, cy - ratio * w / 2, cx + w / 2, cy + ratio * w / 2])
    torch.testing.assert_close(levels[0], torch.tensor(expected))


def test_cell_anchors_are_not_saved():
    assert not AnchorGeneratorConfig().build([16]).state_dict()


def test_rejects_sizes_that_fit_no_level():
    with pytest.raises(ConfigError, match=r"SIZES has 2 entries for 3 feature levels; give 1 or 3"):
        AnchorGeneratorConfig(sizes=((8,), (16,))).build([4, 8, 16])


def test_rotated_anchors_turn_every_size_and_shape():
    section = AnchorGeneratorConfig(
        name="RotatedAnchorGenerator",
        sizes=((16,), (32,)),
        aspect_ratios=((0.25, 1.0),),
        angles=((-45, 0, 45),),
    )
    generator = section.build([8, 16])
    assert generator.anchors_per_cell == 6 and not generator.state_dict()
    fine, coarse = generator([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 1)])
    assert fine.shape == (2 * 3 * 6, 5)
    assert fine[:4].tolist() == [
        [0, 0, 32, 8, -45], [0, 0, 32, 8, 0], [0, 0, 32, 8, 45], [0, 0, 16, 16, -45],
    ]  # fmt: skip
    assert fine[-1].tolist() == [16, 8, 16, 16, 45]  # the last cell: column 2, row 1
    assert coarse[0].tolist() == [0, 0, 64, 16, -45]


def test_unknown_generators_are_refused():
    with pytest.raises(ConfigError, match=r"NAME 'X' is unknown; known: Default.*, Rotated"):
        AnchorGeneratorConfig(name="X")


def test_rounded_anchors_are_those_of_faster_rcnn():
    """As its code prints them, with the last pixels that belong to them."""
    config = AnchorGeneratorConfig(name="RoundedAnchorGenerator", sizes=((64, 128, 256, 512),))
    (anchors,) = config.build([16])([torch.zeros(1, 1, 1, 2)])
    expected = [
        *[(-38, -16, 53, 31), (-84, -40, 99, 55), (-176, -88, 191, 103), (-360, -184, 375, 199)],
        *[(-24, -24, 39, 39), (-56, -56, 71, 71), (-120, -120, 135, 135), (-248, -248, 263, 263)],
        *[(-14, -36, 29, 51), (-36, -80, 51, 95), (-80, -168, 95, 183), (-168, -344, 183, 359)],
    ]
    first = anchors[:12] - torch.tensor([0, 0, 1, 1])
    assert [tuple(one) for one in first.tolist()] == expected
    assert torch.equal(anchors[12:], anchors[:12] + torch.tensor([16, 0, 16, 0]))
