import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdet.errors import ConfigError, DataError
from segdet.layers import ShapeSpec
from segdet.modeling.basis_module import BasisModuleConfig, thing_labels
from segdet.structures import BitMasks, Boxes, PolygonMasks, Targets

SHAPES = {f"p{k}": ShapeSpec(channels=8, stride=2**k) for k in range(3, 6)}


def a_module(**changes):
    section = BasisModuleConfig(**{"convs_dim": 6, "num_classes": 3} | changes)
    return section.build(SHAPES)


def some_maps() -> dict[str, torch.Tensor]:
    return {f"p{k}": torch.randn(2, 8, 128 // 2**k, 64 // 2**k) for k in range(3, 6)}


def test_official_names():
    names = [name for name, _ in a_module(loss_on=True).named_parameters()]
    blocks = [f"refine.{k}" for k in range(3)] + [f"tower.{k}" for k in (0, 1, 2, 4)]
    expected = [f"{at}.{name}" for at in blocks for name in ("0.weight", "1.weight", "1.bias")]
    expected += ["tower.5.weight", "tower.5.bias"]
    for at in (0, 3):
        expected += [
            f"seg_head.{at}.weight",
            f"seg_head.{at + 1}.weight",
            f"seg_head.{at + 1}.bias",
        ]
    assert names == [*expected, "seg_head.6.weight", "seg_head.6.bias"]
    assert a_module(num_convs=2).tower[3][0].weight.shape == (6, 6, 3, 3)
    assert a_module().seg_head is None


def test_norms_may_see_all_workers_but_those_of_the_semantic_head():
    module = a_module(loss_on=True)
    assert isinstance(module.refine[0][1], nn.SyncBatchNorm)
    assert isinstance(module.tower[0][1], nn.SyncBatchNorm)
    assert type(module.seg_head[1]) is nn.BatchNorm2d


def test_bases_have_half_the_stride_and_all_levels_enter():
    module = a_module(norm="")
    maps = {name: one.requires_grad_() for name, one in some_maps().items()}
    bases = module(maps)
    assert bases.shape == (2, 4, 32, 16)
    bases.square().sum().backward()
    assert all(one.grad.any() for one in maps.values())
    refined = [module.refine[k](maps[f"p{k + 3}"]) for k in range(3)]
    resized = [F.interpolate(x, size=(16, 8), mode="bilinear") for x in refined[1:]]
    torch.testing.assert_close(module.tower(refined[0] + sum(resized)), bases)


@pytest.mark.parametrize("training", [True, False])
def test_sync_bn_is_batch_norm_in_one_process(training):
    torch.manual_seed(0)
    sync, plain = a_module().train(training), a_module(norm="BN").train(training)
    plain.load_state_dict(sync.state_dict())
    maps = some_maps()
    torch.testing.assert_close(sync(maps), plain(maps))
    torch.testing.assert_close(dict(sync.named_buffers()), dict(plain.named_buffers()))


def test_semantic_loss_counts_every_cell_of_the_finest_map():
    module, maps = a_module(loss_on=True).eval(), some_maps()
    labels = torch.randint(0, 4, (2, 128, 64))
    losses = module.losses(maps, labels)
    nearest = F.interpolate(labels[:, None].float(), scale_factor=1 / 8)[:, 0].long()
    expected = 0.3 * F.cross_entropy(module.seg_head(maps["p3"]), nearest)
    torch.testing.assert_close(losses["loss_basis_sem"], expected)
    assert a_module().losses(maps, labels) == {}


def test_label_maps_are_checked():
    module = a_module(loss_on=True)
    module.check_labels(torch.tensor([[0, 3]]), (1, 2))
    with pytest.raises(ValueError, match=r"of shape \(1, 2\), the image of \(1, 3\)"):
        module.check_labels(torch.tensor([[0, 3]]), (1, 3))
    with pytest.raises(DataError, match=r"labels \[4\]; they must be 0 or class \+ 1"):
        module.check_labels(torch.tensor([[0, 4]]), (1, 2))


@pytest.mark.parametrize("as_pixels", [True, False])
def test_later_objects_cover_earlier_ones(as_pixels):
    masks = PolygonMasks([[[0, 0, 4, 0, 4, 4, 0, 4]], [[2, 0, 6, 0, 6, 2, 2, 2]]])
    if as_pixels:
        masks = BitMasks.from_polygon_masks(masks, 4, 8)
    boxes = Boxes(torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 2]]))
    targets = Targets((4, 8), gt_boxes=boxes, gt_classes=torch.tensor([2, 0]), gt_masks=masks)
    expected = [[3, 3, 1, 1, 1, 1, 0, 0]] * 2 + [[3, 3, 3, 3, 0, 0, 0, 0]] * 2
    assert thing_labels(targets).tolist() == expected


def test_refuses_unusable_settings():
    with pytest.raises(ConfigError, match="'MaskBranch' is unknown; known: ProtoNet"):
        a_module(name="MaskBranch")
    with pytest.raises(ConfigError, match="COMMON_STRIDE must be the stride of p3, 8; it is 4"):
        a_module(common_stride=4)
