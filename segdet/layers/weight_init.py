from torch import nn

from segdet.layers.deform_conv import DeformConv, ModulatedDeformConv


def c2_msra_fill(
    module: (
        nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear | DeformConv | ModulatedDeformConv
    ),
) -> None:
    """Fill with Caffe2's MSRAFill: normal with variance 2 / fan_out, bias 0 (arXiv:1502.01852)."""
    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def c2_xavier_fill(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    """Fill with Caffe2's XavierFill: uniform within sqrt(3 / fan_in), bias 0."""
    nn.init.kaiming_uniform_(module.weight, a=1)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def normal_fill(layer: nn.Conv1d | nn.Conv2d | nn.Linear, std: float) -> None:
    """Weights from a normal distribution of mean 0, bias 0; in place."""
    nn.init.normal_(layer.weight, std=std)
    assert layer.bias is not None, "made with a bias"
    nn.init.zeros_(layer.bias)
