import pytest
import torch

from segdet.errors import ConfigError
from segdet.layers import ROIAlign
from segdet.modeling.roi_pooler import ROIPooler, assign_levels, assign_levels_by_ratio


@pytest.mark.parametrize(
    "side, level",
    [
        (0, 2),
        (10, 2),
        (111, 2),
        (112, 3),
        (113, 3),
        (223.999, 3),
        (224, 4),
        (447, 4),
        (448, 5),
        (2000, 5),
    ],
)
def test_level_of_a_square(side, level):
    boxes = torch.tensor([[5.0, 5, 5 + side, 5 + side]])
    assert assign_levels(boxes, 2, 5).item() == level


def test_level_of_a_share_of_the_image():
    """Golden values of CenterMask2: exactly a half and a quarter belong to the finer level."""
    sizes = [(w, 800) for w in (1088, 700, 544, 543, 272, 271)] + [(100, 100), (0, 800)]
    boxes = torch.tensor([[0.0, 0, width, height] for width, height in sizes])
    areas = torch.full((len(boxes),), 800.0 * 1088)
    levels = assign_levels_by_ratio(boxes, areas, 3, 5)
    assert levels.tolist() == [5, 5, 4, 4, 3, 3, 3, 3]


def test_shares_are_of_each_boxs_own_image():
    maps = [torch.full((2, 1, 64 // s, 64 // s), float(s)) for s in (8, 16, 32)]
    boxes = [torch.tensor([[0.0, 0, 40, 40]]), torch.tensor([[0.0, 0, 30, 40], [0, 0, 5, 5]])]
    pooler = ROIPooler(1, strides=[8, 16, 32], assign_criterion="ratio")
    pooled = pooler(maps, boxes, [(64, 64), (40, 40)])
    assert pooled.flatten().tolist() == [16, 32, 8]  # 0.39, 0.75 and 0.02 of their images


def test_an_unknown_criterion_is_named():
    with pytest.raises(ConfigError, match="ASSIGN_CRITERION must be area or ratio, is 'size'"):
        ROIPooler(7, strides=[4], assign_criterion="size")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_rows_keep_the_order_of_the_boxes(memory_format):
    maps = [torch.rand(2, 3, 64 // 2**i, 64 // 2**i) for i in range(4)]
    maps = [one.to(memory_format=memory_format).requires_grad_() for one in maps]
    boxes = [
        torch.tensor([[0.0, 0, 200, 200], [3, 4, 40, 50]]),
        torch.tensor([[0.0, 0, 250, 250], [1, 1, 9, 9], [0, 0, 120, 120]]),
    ]
    pooled = ROIPooler(7, strides=[4, 8, 16, 32])(maps, boxes)
    weights = torch.rand_like(pooled)
    found = torch.autograd.grad((pooled * weights).sum(), maps)
    row, expected = 0, torch.zeros(())
    for image, image_boxes in enumerate(boxes):
        for box in image_boxes:
            level = assign_levels(box[None], 2, 5).item()
            roi = torch.cat((torch.tensor([float(image)]), box))[None]
            alone = ROIAlign(7, 1 / 2**level, 0, aligned=True)(maps[level - 2], roi)
            torch.testing.assert_close(pooled[row], alone[0])
            expected = expected + (alone[0] * weights[row]).sum()
            row += 1
    assert row == len(pooled)
    expected = torch.autograd.grad(expected, maps, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("strides", [[16], [4, 8]])
def test_no_boxes(strides):
    maps = [torch.rand(1, 3, 8, 8) for _ in strides]
    assert ROIPooler(7, strides=strides)(maps, [torch.zeros(0, 4)]).shape == (0, 3, 7, 7)


def test_gradient_reaches_every_level():
    maps = [torch.rand(1, 2, 64 // 2**i, 64 // 2**i, requires_grad=True) for i in range(2)]
    boxes = [torch.tensor([[0.0, 0, 20, 20], [0, 0, 150, 150]])]
    ROIPooler(2, strides=[4, 8])(maps, boxes).sum().backward()
    assert all(m.grad.abs().sum() > 0 for m in maps)


def test_strides_must_be_consecutive():
    with pytest.raises(ConfigError, match=r"must have strides \[4, 8\], have \[4, 16\]"):
        ROIPooler(7, strides=[4, 16])
