import torch
from torch.utils._python_dispatch import TorchDispatchMode

from segdet.layers.patches import patches_at

CELLS = torch.tensor([[0, 0, 0], [1, 2, 3], [1, 2, 4], [0, 4, 6]])


def test_squares_are_those_of_the_padded_map():
    x = torch.randn(2, 3, 5, 7)
    patches, on_map = patches_at(x, CELLS, reach=2)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    for i, (image, row, column) in enumerate(CELLS.tolist()):
        expected = padded[image, :, row : row + 5, column : column + 5].permute(1, 2, 0)
        assert torch.equal(patches[i] * on_map[i], expected)


def test_gradients():
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)

    def masked(x):
        patches, on_map = patches_at(x, CELLS, reach=1)
        return patches * on_map

    assert torch.autograd.gradcheck(masked, (x,))


def test_no_cells():
    patches, on_map = patches_at(torch.zeros(1, 3, 5, 7), CELLS[:0], reach=1)
    assert patches.shape == (0, 3, 3, 3) and on_map.shape == (0, 3, 3, 1)


class Called(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_gradient_is_not_of_a_kind_that_threads_race_for():
    """`index_put` adds floats atomically on the CPU, in another order each time."""
    x = torch.randn(2, 3, 5, 7, requires_grad=True)
    with Called() as called:
        patches_at(x, CELLS, reach=1)[0].sum().backward()
    assert any("index_add" in name for name in called.names)
    assert not any("index_put" in name for name in called.names)
