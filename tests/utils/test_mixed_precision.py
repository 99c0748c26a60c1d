import pytest
import torch

from segdet.utils.mixed_precision import AMPConfig


@pytest.mark.parametrize(
    "precision, device, expected",
    [
        ("", "cpu", torch.bfloat16),
        ("", "cuda", torch.float16),
        ("float16", "cpu", torch.float16),
        ("bfloat16", "cuda", torch.bfloat16),
    ],
)
def test_precision_has_a_default_by_device(precision, device, expected):
    assert AMPConfig(precision=precision).dtype(device) is expected


@pytest.mark.parametrize("enabled, inside", [(True, torch.float16), (False, torch.bfloat16)])
def test_a_context_that_is_not_enabled_leaves_the_one_around_it(enabled, inside):
    own = AMPConfig(enabled=enabled, precision="float16")
    with torch.autocast("cpu", torch.bfloat16), own.autocast("cpu"):
        assert torch.get_autocast_dtype("cpu") is inside
        assert torch.is_autocast_enabled("cpu")
