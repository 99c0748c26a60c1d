import sys

import pytest
import torch
from torch import nn

from segdet.solver.sgd import SGD


def three_steps(kind: type[torch.optim.SGD], **settings: bool) -> tuple[list[torch.Tensor], dict]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [
        {"params": model[0].parameters()},
        {"params": model[1].parameters(), "weight_decay": 0.0},
    ]
    optimizer = kind(groups, lr=0.1, momentum=0.9, weight_decay=0.01, **settings)
    x = torch.randn(5, 3)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()], optimizer.state_dict()


@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {"nesterov": True}])
def test_is_that_of_torch(settings):
    (weights, state), (expected, theirs) = (
        three_steps(kind, **settings) for kind in (SGD, torch.optim.SGD)
    )
    assert all(map(torch.equal, weights, expected))
    assert state["param_groups"] == theirs["param_groups"]
    for number, own in theirs["state"].items():
        assert torch.equal(state["state"][number]["momentum_buffer"], own["momentum_buffer"])


def test_does_not_import_the_compiler(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # from now on an ImportError
    parameter = nn.Parameter(torch.ones(1))
    with pytest.raises(ImportError):
        torch.optim.SGD([parameter], lr=0.1).step()
    optimizer = SGD([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    assert parameter.item() == pytest.approx(0.9) and parameter.grad is None
