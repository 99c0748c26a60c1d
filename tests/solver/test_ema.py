import copy

import pytest
import torch
from torch import nn

from segdet.config.node import CfgNode
from segdet.config.reader import defaults_of
from segdet.errors import ConfigError
from segdet.solver import ModelEMA, ModelEMAConfig, build_model_ema


class Net(nn.Module):
    """Weights that learn, one that does not, statistics, a counter and a table of indices."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("table", torch.arange(1000))

    def forward(self, x):
        return self.norm(self.frozen(self.linear(x))).square().sum() + self.linear.weight.sum()


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.randn(5, 3, dtype=net.linear.weight.dtype)).backward()
    optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
def test_it_is_the_average_by_definition(decay):
    torch.manual_seed(0)
    net = Net().double()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    ema = ModelEMA(net, optimizer, decay)
    net.load_state_dict(Net().double().state_dict())  # the weights that the run begins with
    ema.begin()
    expected = copy.deepcopy(net.state_dict())
    for _ in range(20):
        step(net, optimizer)
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    found = ema.state_dict()
    for name in ("linear.weight", "linear.bias", "norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-13, atol=1e-14)
    assert torch.equal(found["frozen.weight"], net.frozen.weight)
    assert found["norm.num_batches_tracked"] == 20 and torch.equal(found["table"], net.table)
    if decay:
        assert not torch.equal(found["linear.weight"], net.linear.weight)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_gradient_scaler_leaves_out_does_not_count(fused):
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    ema = ModelEMA(net, optimizer, 0.5)
    ema.begin()
    seen = []
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((net(torch.ones(1, 2)) * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        seen.append(ema.state_dict()["weight"].clone())
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_what_was_saved_goes_on_bit_for_bit():
    def begun():
        torch.manual_seed(1)
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        return net, optimizer, ModelEMA(net, optimizer, 0.7)

    net, optimizer, ema = begun()
    ema.begin()
    for _ in range(3):
        step(net, optimizer)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), ema.state_dict()))
    state = torch.get_rng_state()
    step(net, optimizer)
    other, its_optimizer, its_ema = begun()
    for part, one in zip((other, its_optimizer, its_ema), saved, strict=True):
        part.load_state_dict(one)
    its_ema.begin()
    torch.set_rng_state(state)
    step(other, its_optimizer)
    found = its_ema.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in ema.state_dict().items())


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    cfg = CfgNode({"MODEL_EMA": defaults_of(ModelEMAConfig)})
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    assert build_model_ema(cfg, net, optimizer) is None
    cfg.MODEL_EMA.DECAY = decay
    with pytest.raises(ConfigError, match=r"MODEL_EMA.DECAY must be .*\[0, 1\), is "):
        build_model_ema(cfg, net, optimizer)
