import numpy as np
import pytest
import torch

from segdet.structures import Keypoints


def test_container(device):
    keypoints = Keypoints(torch.rand(4, 17, 3)).to(device)
    assert keypoints.device.type == device and len(keypoints) == 4
    assert keypoints[1].tensor.shape == (1, 17, 3)
    assert keypoints[1:].tensor.shape == (3, 17, 3)
    assert len(keypoints[torch.tensor([True, False, True, False], device=device)]) == 2
    assert torch.equal(Keypoints.cat([keypoints[:2], keypoints[2:]]).tensor, keypoints.tensor)
    assert repr(keypoints) == "Keypoints(num_instances=4)"


def test_takes_lists_and_arrays():
    for given in ([[[1, 2, 2]]], np.array([[[1, 2, 2]]]), torch.tensor([[[1, 2, 2]]])):
        assert Keypoints(given).tensor.dtype == torch.float32
    assert Keypoints(torch.zeros(1, 2, 3, dtype=torch.float64)).tensor.dtype == torch.float64


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"Keypoints takes an \(N, K, 3\) tensor, got \(1, 51\)"):
        Keypoints(torch.zeros(1, 51))
