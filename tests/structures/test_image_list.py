import pytest
import torch

from segdet.structures import ImageList


def test_pads_right_and_bottom_to_the_largest():
    small, wide = torch.ones(3, 2, 3), torch.full((3, 1, 5), 2.0)
    images = ImageList.from_tensors([small, wide], pad_value=-1)
    assert images.tensor.shape == (2, 3, 2, 5)
    assert images.image_sizes == [(2, 3), (1, 5)]
    assert images.tensor[0, 0].tolist() == [[1, 1, 1, -1, -1], [1, 1, 1, -1, -1]]
    assert images.tensor[1, 2].tolist() == [[2, 2, 2, 2, 2], [-1, -1, -1, -1, -1]]
    assert len(images) == 2
    assert torch.equal(images[0], small) and torch.equal(images[1], wide)


@pytest.mark.parametrize(
    "divisibility, expected", [(0, (33, 31)), (1, (33, 31)), (32, (64, 32)), (11, (33, 33))]
)
@pytest.mark.parametrize("number", [1, 2])
def test_rounds_up(divisibility, expected, number):
    images = ImageList.from_tensors([torch.ones(1, 33, 31)] * number, divisibility)
    assert images.tensor.shape[-2:] == expected
    assert images.tensor.sum() == number * 33 * 31


def test_a_backbones_constraints_go_first():
    images = [torch.ones(3, 20, 30)]
    square = ImageList.from_tensors(images, 8, padding_constraints={"square_size": 48})
    assert square.tensor.shape == (1, 3, 48, 48)
    coarser = ImageList.from_tensors(images, 8, padding_constraints={"size_divisibility": 32})
    assert coarser.tensor.shape == (1, 3, 32, 32)
    assert ImageList.from_tensors(images, 8, padding_constraints={}).tensor.shape == (1, 3, 24, 32)


def test_label_maps_and_integers():
    images = ImageList.from_tensors(
        [torch.zeros(2, 2, dtype=torch.long), torch.zeros(3, 1, dtype=torch.long)], pad_value=255
    )
    assert images.tensor.dtype == torch.long
    assert images.tensor[0].tolist() == [[0, 0], [0, 0], [255, 255]]


def test_does_not_change_its_input():
    image = torch.ones(3, 4, 4)
    ImageList.from_tensors([image]).tensor.zero_()
    assert image.all()


def test_passes_gradients():
    image = torch.ones(3, 4, 5, requires_grad=True)
    ImageList.from_tensors([image, torch.ones(3, 6, 2)], 4).tensor.sum().backward()
    assert image.grad is not None and image.grad.unique().tolist() == [1]


def test_moves(device):
    images = ImageList.from_tensors([torch.ones(3, 4, 5)]).to(device)
    assert images.device.type == device and images.image_sizes == [(4, 5)]


def test_refuses():
    with pytest.raises(ValueError, match="at least one image"):
        ImageList.from_tensors([])
    with pytest.raises(ValueError, match=r"image 1 has shape \(1, 4, 4\)"):
        ImageList.from_tensors([torch.ones(3, 4, 4), torch.ones(1, 4, 4)])
    with pytest.raises(ValueError, match="20 x 30 does not fit into square_size 24"):
        ImageList.from_tensors([torch.ones(3, 20, 30)], padding_constraints={"square_size": 24})
