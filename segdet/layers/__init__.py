from segdet.layers.batch_norm import (
    FrozenBatchNorm2d,
    LayerNorm,
    NaiveSyncBatchNorm,
    get_norm,
)
from segdet.layers.shape_spec import ShapeSpec
from segdet.layers.weight_init import c2_msra_fill, c2_xavier_fill
from segdet.layers.wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    interpolate,
    nonzero_tuple,
)

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "FrozenBatchNorm2d",
    "LayerNorm",
    "Linear",
    "NaiveSyncBatchNorm",
    "ShapeSpec",
    "c2_msra_fill",
    "c2_xavier_fill",
    "cat",
    "cross_entropy",
    "get_norm",
    "interpolate",
    "nonzero_tuple",
]
