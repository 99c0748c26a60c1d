import numpy as np
import pytest
import torch

from segdet.data.loader import Loader, Samples
from segdet.data.parcel import Parcel
from segdet.structures import PolygonMasks, Targets


def test_a_batch_comes_out_as_it_went_in():
    polygons = PolygonMasks([[np.arange(8.0)], []])
    targets = Targets((300, 400), gt_classes=torch.tensor([1, 2]), gt_masks=polygons)
    batch = [
        {
            "image": torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8),
            "turned": torch.rand(300, 200).T,
            "masks": torch.rand(4, 200, 150) > 0.5,
            "half": torch.rand(300, 400).bfloat16(),
            "none": torch.zeros(0, 4),
            "file_name": "a.jpg",
            "instances": targets,
        },
        {"image": torch.zeros(3, 100, 333, dtype=torch.uint8), "array": np.random.rand(99, 101)},
    ]
    out = Parcel(batch).unpack()
    for sample, expected in zip(out, batch, strict=True):
        assert sample.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(sample[name], value) and sample[name].dtype == value.dtype
    assert (out[1]["array"] == batch[1]["array"]).all() and out[0]["file_name"] == "a.jpg"
    moved = out[0]["instances"]
    assert moved.gt_classes.tolist() == [1, 2] and moved.gt_masks.polygons[1] == []
    assert moved.gt_masks.polygons[0][0].tolist() == list(range(8))


def test_large_tensors_share_one_block_and_can_be_written_to():
    image = torch.zeros(3, 200, 300, dtype=torch.uint8)
    first, second, small = Parcel([image, image + 1, torch.ones(5)]).unpack()
    first += 7
    small += 1
    assert (first == 7).all() and (second == 1).all() and (small == 2).all()
    assert second.data_ptr() % 64 == 0
    assert 0 < abs(second.data_ptr() - first.data_ptr()) < 2 * image.numel()


def test_a_batch_without_large_tensors():
    assert Parcel({"a": 1, "b": torch.tensor(3)}).unpack()["b"].item() == 3


def test_its_block_is_pinned_in_one_piece(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x.clone()) or pinned[0])
    image = torch.randint(0, 256, (3, 200, 300), dtype=torch.uint8)
    parcel = Parcel([image, image.float()])
    first, second = parcel.pin_memory().unpack()
    assert torch.equal(first, image) and torch.equal(second, image.float())
    (block,) = pinned
    # With the block's own storage torch knows when a copy from it is done.
    assert {x.untyped_storage().data_ptr() for x in (first, second)} == {block.data_ptr()}


@pytest.mark.cuda
def test_workers_batches_are_page_locked():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    image = torch.randint(0, 256, (3, 200, 300), dtype=torch.uint8)
    for (moved,) in Loader(Samples([image] * 4), num_workers=2):
        assert moved.is_pinned() and torch.equal(moved.to("cuda", non_blocking=True).cpu(), image)
