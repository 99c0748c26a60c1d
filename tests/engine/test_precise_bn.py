"""Batch norm's statistics, measured anew."""

import pytest
import torch
from torch import nn

from segdet.engine import SimpleTrainer
from segdet.engine.hooks import PreciseBN
from segdet.engine.precise_bn import get_bn_modules, update_bn_stats
from segdet.errors import DataError
from segdet.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm


def batches(count=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 3, 5, 5, generator=generator) * (k + 1) + k for k in range(count)]


class Net(nn.Module):
    """A norm that is called twice, by a shared layer."""

    def __init__(self, norm) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = norm
        self.frozen = FrozenBatchNorm2d(3)

    def forward(self, x):
        loss = self.norm(self.frozen(x) * self.scale).square().mean()
        return {"loss": loss + self.norm(x[:, :, :2] * 3).mean()}


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, NaiveSyncBatchNorm])
def test_the_statistics_are_those_of_all_batches(kind):
    net = Net(kind(3, momentum=0.3)).train()
    weights = {name: value.clone() for name, value in net.named_parameters()}
    update_bn_stats(net, iter(batches(9)), 4)
    seen = [part for x in batches() for part in (x, x[:, :, :2] * 3)]
    means = torch.stack([x.mean((0, 2, 3)) for x in seen])
    variances = torch.stack([x.var((0, 2, 3)) for x in seen])
    # Law of total variance: the mean variance, and the variance of the means.
    expected = variances.mean(0) + means.var(0, correction=0)
    torch.testing.assert_close(net.norm.running_mean, means.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.norm.running_var, expected, rtol=1e-4, atol=1e-5)
    assert net.norm.momentum == 0.3 and not net.norm._forward_hooks
    assert all(torch.equal(value, weights[name]) for name, value in net.named_parameters())


def test_a_small_variance_beside_a_large_mean_is_kept():
    norm, generator = nn.BatchNorm1d(3), torch.Generator().manual_seed(0)
    seen = [100 + 0.02 * torch.randn(64, 3, generator=generator) for _ in range(8)]
    update_bn_stats(norm, seen, 8)
    exact = torch.stack(seen).double()
    expected = exact.var(1).mean(0) + exact.mean(1).var(0, correction=0)
    torch.testing.assert_close(norm.running_var.double(), expected, rtol=1e-3, atol=0)
    update_bn_stats(norm, [torch.full((4, 3), 100.1)] * 7, 7)
    assert (norm.running_var >= 0).all() and norm.running_var.max() < 1e-8


def test_a_layer_that_nothing_reaches_keeps_its_statistics():
    net = Net(nn.BatchNorm2d(3)).train()
    net.unused = nn.BatchNorm2d(3)
    update_bn_stats(net, [torch.zeros(0, 3, 5, 5), batches(1)[0]], 2)
    assert net.unused.running_mean.tolist() == [0, 0, 0]
    assert net.norm.running_var.isfinite().all() and net.norm.running_var.max() < 20


def test_norms_that_learn_nothing_are_left_alone(caplog):
    caplog.set_level("INFO")
    net = Net(nn.BatchNorm2d(3)).eval()
    assert get_bn_modules(net) == []
    PreciseBN(1, net, lambda: pytest.fail("no loader is needed"), 2).update_stats()
    assert "nothing to do" in caplog.text
    net.train()
    assert get_bn_modules(net) == [net.norm]


def test_too_few_batches_are_named():
    with pytest.raises(DataError, match="PreciseBN needs 5 batches, the data loader gave 4"):
        update_bn_stats(Net(nn.BatchNorm2d(3)).train(), batches(), 5)


@pytest.mark.parametrize("period, expected", [(0, [6]), (2, [2, 4, 6]), (4, [4, 6])])
def test_it_measures_at_the_period_and_at_the_end(period, expected, monkeypatch):
    net, done = Net(nn.BatchNorm2d(3)), []
    trainer = SimpleTrainer(net, batches(), torch.optim.SGD(net.parameters(), 0.1))
    hook = PreciseBN(period, net, batches(), 4)
    monkeypatch.setattr(hook, "update_stats", lambda: done.append(trainer.iter + 1))
    trainer.register_hooks([hook])
    trainer.train(0, 6)
    assert done == expected
