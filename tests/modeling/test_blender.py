import pytest
import torch
import torch.nn.functional as F

from segdet.errors import ConfigError
from segdet.modeling.blender import BlenderConfig, blended_mask_loss


def a_blender(num_bases: int = 4, attn_size: int = 2, side: int = 4, **changes):
    section = BlenderConfig(attn_size=attn_size, bottom_resolution=side, **changes)
    return section.build(num_bases, stride=4)


@pytest.mark.parametrize("autocast", [False, True])
def test_golden_blend(autocast):
    """Numbers of the official code for one object."""
    ramp = torch.arange(16.0).reshape(4, 4)
    pooled = torch.stack([t * ramp for t in (1, -1, 0.5, 0)])[None]
    attention = torch.tensor([[(7 * i) % 5 - 2.0 for i in range(16)]])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = a_blender()(pooled, attention)
    expected = [
        [0, -0.1352, 0.6893, 1.5803],
        [-0.7534, -0.6867, 1.3868, 2.8973],
        [1.5873, 0.6003, -2.7410, -3.7954],
        [6.8917, 3.8204, -7.7345, -11.0003],
    ]
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits[0], torch.tensor(expected), atol=1e-4, rtol=0)


def test_one_basis_is_its_own_mask():
    pooled, attention = torch.randn(3, 1, 4, 4), 5 * torch.randn(3, 4)
    torch.testing.assert_close(a_blender(num_bases=1)(pooled, attention), pooled[:, 0])


def test_nearest_attention_is_constant_within_its_cells():
    pooled, attention = torch.randn(2, 4, 4, 4), torch.randn(2, 16)
    weights = attention.reshape(2, 4, 2, 2).softmax(dim=1)
    weights = weights.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    logits = a_blender(top_interp="nearest")(pooled, attention)
    torch.testing.assert_close(logits, (weights * pooled).sum(dim=1))


def test_half_precision_is_blended_in_float32():
    pooled, attention = torch.randn(2, 4, 4, 4).half(), torch.randn(2, 16).half()
    logits = a_blender()(pooled, attention)
    torch.testing.assert_close(logits, a_blender()(pooled.float(), attention.float()))


def test_pooling_takes_one_sample_a_cell_of_bases_at_stride_4():
    bases = torch.arange(16.0).expand(1, 1, 8, 16)  # a ramp along x
    pooled = a_blender(num_bases=1).pool(bases, [torch.tensor([[8.0, 4.0, 24.0, 20.0]])])
    # 4 bases cells on 4 mask cells; a pixel's centre is at half of it
    torch.testing.assert_close(pooled[0, 0], torch.tensor([2.0, 3.0, 4.0, 5.0]).expand(4, 4))


@torch.no_grad()
def test_loss_is_a_weighted_mean_of_each_mask():
    logits, masks = torch.randn(5, 4, 4), torch.rand(5, 4, 4) > 0.5
    weights = torch.rand(5)
    expected = sum(
        weight * F.binary_cross_entropy_with_logits(one, mask.float())
        for one, mask, weight in zip(logits, masks, weights, strict=True)
    )
    torch.testing.assert_close(blended_mask_loss(logits, masks, weights, 2.5), expected / 2.5)


def test_loss_of_nothing_is_zero_and_connected():
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    loss = blended_mask_loss(logits, torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0), 1e-6)
    loss.backward()
    assert loss == 0 and logits.grad is not None


def test_refuses_unusable_settings():
    with pytest.raises(ConfigError, match="TOP_INTERP must be one of bilinear, nearest, is 'cub"):
        BlenderConfig(top_interp="cubic")
    with pytest.raises(ConfigError, match=r"POOLER_SCALES must be \(0.5,\).* it is \(0.25,\)"):
        BlenderConfig().build(4, stride=2)
