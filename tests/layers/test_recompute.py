import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from segdet.layers.recompute import recompute


def scaled_sines(x: Tensor, scale: Tensor, _index: Tensor) -> Tensor:
    return x.sin() * scale


def test_gradients_are_those_of_the_function():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(4, dtype=torch.float64, requires_grad=True)
    inputs = (x, scale, torch.arange(2))
    assert gradcheck(lambda *inputs: recompute(scaled_sines, *inputs), inputs)
    assert torch.equal(recompute(scaled_sines, *inputs), scaled_sines(*inputs))


def test_keeps_its_inputs_alone():
    x, scale = torch.randn(3, requires_grad=True), torch.randn(3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = recompute(scaled_sines, x, scale, scale)
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), scale.data_ptr(), scale.data_ptr()]
    y.sum().backward()
    torch.testing.assert_close(x.grad, x.detach().cos() * scale)


def test_computes_again_in_the_precision_of_the_first_time():
    seen = []

    def product(x: Tensor, weight: Tensor) -> Tensor:
        y = x @ weight
        seen.append(y.dtype)
        return y

    weight = nn.Parameter(torch.randn(4, 2))
    with torch.autocast("cpu", torch.bfloat16):
        y = recompute(product, torch.randn(3, 4), weight)
    y.float().sum().backward()
    assert seen == [torch.bfloat16] * 2
    assert weight.grad is not None and weight.grad.dtype == torch.float32
