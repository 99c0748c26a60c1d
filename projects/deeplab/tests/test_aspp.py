import pytest
import torch
import torch.nn.functional as F


def build(deeplab, **settings):
    given = {"dilations": (1, 2), "norm": "BN"} | settings
    return deeplab.aspp.ASPP(6, 4, **given).double().eval()


@pytest.mark.parametrize("separable", [False, True])
def test_it_is_the_projection_of_its_branches(deeplab, separable):
    aspp = build(deeplab, separable=separable)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    pooled = aspp.convs[3][1](x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, 7, 9)
    branches = [aspp.convs[0](x), aspp.convs[1](x), aspp.convs[2](x), pooled]
    torch.testing.assert_close(aspp(x), aspp.project(torch.cat(branches, dim=1)))
    dilated = aspp.convs[2].depthwise if separable else aspp.convs[2]
    expected = F.conv2d(x, dilated.weight, padding=2, dilation=2, groups=6 if separable else 1)
    torch.testing.assert_close(dilated(x), F.relu(dilated.norm(expected)))


def test_dropout_is_of_training(deeplab):
    aspp = build(deeplab, dropout=0.5)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    assert torch.equal(aspp(x), aspp(x))
    aspp.train()
    assert not torch.equal(aspp(x), aspp(x))


def test_the_window_is_of_the_crop_and_no_larger_than_the_map(deeplab):
    x = torch.randn(1, 2, 6, 8)
    pool = deeplab.aspp.WindowPool
    found = pool((4, 3))(x)
    assert found.shape == (1, 2, 3, 6)
    torch.testing.assert_close(found[0, 1, 2, 5], x[0, 1, 2:6, 5:8].mean())
    whole = pool(None)(x)
    assert whole.shape == (1, 2, 1, 1)
    torch.testing.assert_close(pool((6, 8))(x), whole)
    torch.testing.assert_close(pool((9, 8))(x), whole)
