import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from segdet.errors import ConfigError
from segdet.layers import FrozenBatchNorm2d, LayerNorm, NaiveSyncBatchNorm, get_norm


def trained(norm: nn.Module) -> nn.Module:
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    return norm


class TestFrozen:
    def test_has_only_buffers(self):
        norm = FrozenBatchNorm2d(4)
        assert list(norm.parameters()) == []
        assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var"]

    @pytest.mark.parametrize("eps", [1e-5, 1e-3])
    def test_a_fresh_one_is_the_identity(self, eps):
        x = torch.randn(2, 4, 3, 3)
        assert torch.equal(FrozenBatchNorm2d(4, eps)(x), x)

    @pytest.mark.parametrize("eps", [1e-5, 1e-3])
    def test_is_batch_norm_in_evaluation(self, eps):
        norm = trained(nn.BatchNorm2d(4, eps=eps)).eval()
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm).train()
        x = torch.randn(2, 4, 3, 3)
        torch.testing.assert_close(frozen(x), norm(x))
        with_grad = x.clone().requires_grad_()
        torch.testing.assert_close(frozen(with_grad), norm(x))

    def test_gradient(self):
        frozen = trained(FrozenBatchNorm2d(3)).double()
        x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(frozen, x)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("grad", [False, True])
    def test_keeps_half_precision(self, dtype, grad, device):
        frozen = trained(FrozenBatchNorm2d(3)).to(device)
        x = torch.randn(2, 3, 4, 4, device=device)
        half = frozen(x.to(dtype).requires_grad_(grad))
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), frozen(x), rtol=0.02, atol=0.05)

    def test_empty_batch(self):
        assert FrozenBatchNorm2d(3)(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)
        grad = torch.zeros(0, 3, 4, 4, requires_grad=True)
        assert FrozenBatchNorm2d(3)(grad).shape == (0, 3, 4, 4)

    def test_weights_without_statistics_load(self):
        frozen = trained(FrozenBatchNorm2d(2))
        frozen.load_state_dict({"weight": torch.tensor([2.0, 3]), "bias": torch.tensor([0.0, 1])})
        assert frozen.weight.tolist() == [2, 3]
        assert frozen.running_mean.tolist() == [0, 0] and frozen.running_var.tolist() == [1, 1]

    def test_lost_statistics_of_our_own_are_an_error(self):
        state = FrozenBatchNorm2d(2).state_dict()
        assert state._metadata[""]["version"] == 3
        del state["running_var"]
        with pytest.raises(RuntimeError, match=r"Missing key.*running_var"):
            FrozenBatchNorm2d(2).load_state_dict(state)

    def test_missing_norms_are_reported_whole(self):
        report = nn.Sequential(FrozenBatchNorm2d(2)).load_state_dict({}, strict=False)
        assert report.missing_keys == ["0.weight", "0.bias", "0.running_mean", "0.running_var"]

    def test_weights_of_a_batch_norm_load(self):
        norm = trained(nn.BatchNorm2d(2))
        frozen = FrozenBatchNorm2d(2)
        frozen.load_state_dict(norm.state_dict())
        assert torch.equal(frozen.running_var, norm.running_var)

    def test_converts_a_tree(self):
        tree = nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.Sequential(trained(nn.BatchNorm2d(4, eps=1e-3)), nn.SyncBatchNorm(4)),
            NaiveSyncBatchNorm(4),
            nn.GroupNorm(2, 4),
            nn.BatchNorm2d(4, affine=False),
        ).eval()
        x = torch.randn(2, 3, 5, 5)
        expected, names = tree(x), list(tree.state_dict())
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(tree)
        assert frozen is tree
        kinds = [type(m) for m in (tree[1][0], tree[1][1], tree[2], tree[3], tree[4])]
        assert kinds == [FrozenBatchNorm2d] * 3 + [nn.GroupNorm, FrozenBatchNorm2d]
        assert tree[1][0].eps == 1e-3 and not tree[1][0].training
        torch.testing.assert_close(tree(x), expected)
        assert [n for n in tree.state_dict() if n not in ("4.weight", "4.bias")] == names

    def test_the_counter_of_a_frozen_norm_is_optional(self):
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(nn.BatchNorm2d(2))
        plain = FrozenBatchNorm2d(2)
        assert "num_batches_tracked" not in plain.state_dict()
        plain.load_state_dict(frozen.state_dict(), strict=True)
        frozen.load_state_dict(plain.state_dict(), strict=True)

    def test_converted_norms_share_nothing(self):
        norm = nn.BatchNorm2d(2)
        FrozenBatchNorm2d.convert_frozen_batchnorm(norm).weight.zero_()
        assert norm.weight.all()


class TestNaiveSync:
    def test_alone_it_is_batch_norm(self):
        x = torch.randn(3, 4, 2, 2)
        ours, theirs = NaiveSyncBatchNorm(4), nn.BatchNorm2d(4)
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.running_var, theirs.running_var)

    @pytest.mark.parametrize("stats_mode", ["", "N"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_two_equal_workers(self, stats_mode, dtype, monkeypatch):
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "all_reduce", lambda total: total.mul_(2))
        x = torch.randn(3, 4, 2, 2)
        norm = NaiveSyncBatchNorm(4, stats_mode=stats_mode)
        expected = nn.BatchNorm2d(4)(x)
        output = norm(x.to(dtype))
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, rtol=1e-3, atol=1e-2)
        if dtype == torch.float32:  # the biased variance, unlike torch's
            biased = 0.9 + 0.1 * x.var((0, 2, 3), correction=0)
            torch.testing.assert_close(norm.running_var, biased)

    def test_refuses(self, monkeypatch):
        with pytest.raises(ValueError, match=r'stats_mode must be "" or "N", is .M.'):
            NaiveSyncBatchNorm(4, stats_mode="M")
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        with pytest.raises(ValueError, match="naiveSyncBN_N accepts it"):
            NaiveSyncBatchNorm(4)(torch.zeros(0, 4, 2, 2))

    @pytest.mark.slow
    @pytest.mark.parametrize("stats_mode, sizes", [("", (2, 2)), ("N", (3, 1)), ("N", (4, 0))])
    def test_real_workers_equal_one_batch(self, stats_mode, sizes, tmp_path):
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(rank), stats_mode, *map(str, sizes), tmp_path],
                cwd=Path(__file__).parents[2],
            )
            for rank in range(2)
        ]
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
        parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
        x = torch.cat([part["x"] for part in parts]).requires_grad_()
        norm = nn.BatchNorm2d(3).double()
        output = norm(x)
        (output * torch.cat([part["weight"] for part in parts])).sum().backward()
        torch.testing.assert_close(torch.cat([part["output"] for part in parts]), output)
        torch.testing.assert_close(torch.cat([part["grad"] for part in parts]), x.grad)
        for part in parts:
            torch.testing.assert_close(part["running_mean"], norm.running_mean)


WORKER = """
import sys, torch, torch.distributed as dist
from segdet.layers import NaiveSyncBatchNorm
rank, stats_mode, sizes, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3:5], sys.argv[5]
dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(rank)
x = torch.randn(int(sizes[rank]), 3, 4, 4, dtype=torch.float64, requires_grad=True)
weight = torch.rand_like(x)
norm = NaiveSyncBatchNorm(3, stats_mode=stats_mode).double()
output = norm(x)
(output * weight).sum().backward()
result = dict(x=x.detach(), weight=weight, output=output.detach(), grad=x.grad)
torch.save(result | {"running_mean": norm.running_mean}, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


class TestLayerNorm:
    def test_matches_torch_over_channels(self):
        norm = trained(LayerNorm(5))
        x = torch.randn(2, 5, 3, 4)
        moved = x.permute(0, 2, 3, 1)
        expected = nn.functional.layer_norm(moved, (5,), norm.weight, norm.bias, 1e-6)
        torch.testing.assert_close(norm(x), expected.permute(0, 3, 1, 2))

    def test_gradient(self):
        x = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(trained(LayerNorm(4)).double(), x)


class TestGetNorm:
    @pytest.mark.parametrize(
        "name, kind",
        [
            ("BN", nn.BatchNorm2d),
            ("SyncBN", nn.SyncBatchNorm),
            ("nnSyncBN", nn.SyncBatchNorm),
            ("FrozenBN", FrozenBatchNorm2d),
            ("GN", nn.GroupNorm),
            ("LN", LayerNorm),
            ("naiveSyncBN", NaiveSyncBatchNorm),
            ("naiveSyncBN_N", NaiveSyncBatchNorm),
            (nn.BatchNorm2d, nn.BatchNorm2d),
        ],
    )
    def test_builds(self, name, kind):
        norm = get_norm(name, 64)
        assert type(norm) is kind
        x = torch.randn(2, 64, 3, 3)
        assert norm(x).shape == x.shape
        assert copy.deepcopy(norm).state_dict().keys() == norm.state_dict().keys()

    def test_settings(self):
        group = get_norm("GN", 64)
        assert (group.num_groups, group.eps, group.affine) == (32, 1e-5, True)
        assert get_norm("LN", 64).eps == 1e-6

    @pytest.mark.parametrize("nothing", ["", None])
    def test_none(self, nothing):
        assert get_norm(nothing, 64) is None

    def test_refuses(self):
        with pytest.raises(ConfigError, match=r"unknown norm 'FrozenBn'; did you mean FrozenBN\?"):
            get_norm("FrozenBn", 64)
        with pytest.raises(ConfigError, match="known: '', BN, SyncBN"):
            get_norm("whatever", 64)
        with pytest.raises(ConfigError, match="GN makes 32 groups and cannot divide 48 channels"):
            get_norm("GN", 48)
