import pytest
import torch
from torch import nn

from segdet import model_zoo
from segdet.config.node import CfgNode
from segdet.config.reader import defaults_of
from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.solver import (
    ClipGradientsConfig,
    SolverConfig,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
)


def tree(**solver: object) -> CfgNode:
    cfg = CfgNode({"SOLVER": defaults_of(SolverConfig)})
    for key, value in solver.items():
        cfg.merge_from_list([f"SOLVER.{key}", value])
    return cfg


class Net(nn.Module):
    """One of each kind: conv with bias, two norms, a frozen and a shared parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.gn = nn.GroupNorm(2, 8)
        self.bn = nn.BatchNorm2d(8)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied_again = self.tied


def summary(groups: list[dict]) -> list[tuple[int, dict]]:
    return [
        (len(group["params"]), {k: v for k, v in group.items() if k != "params"})
        for group in groups
    ]


def test_norms_have_their_own_weight_decay_and_frozen_and_shared_are_counted_right():
    groups = get_default_optimizer_params(Net(), base_lr=0.1, weight_decay_norm=0.0)
    assert summary(groups) == [(3, {"lr": 0.1}), (4, {"lr": 0.1, "weight_decay": 0.0})]


def test_bias_settings_win_over_those_of_norms():
    groups = get_default_optimizer_params(
        Net(),
        base_lr=0.1,
        weight_decay=1e-4,
        weight_decay_norm=0.0,
        bias_lr_factor=2.0,
        weight_decay_bias=0.5,
    )
    assert summary(groups) == [
        (2, {"lr": 0.1, "weight_decay": 1e-4}),  # conv and tied weights
        (3, {"lr": 0.2, "weight_decay": 0.5}),  # every bias, those of norms too
        (2, {"lr": 0.1, "weight_decay": 0.0}),  # norm weights
    ]


def test_layer_wise_rates_and_overrides():
    groups = get_default_optimizer_params(
        nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)),
        base_lr=1.0,
        lr_factor_func=lambda name: 0.5 if name.startswith("0.") else 1.0,
        overrides={"bias": {"lr": 3.0}},
    )
    assert summary(groups) == [(1, {"lr": 0.5}), (2, {"lr": 3.0}), (1, {"lr": 1.0})]


def test_refuses_factors_of_no_rate_and_two_settings_of_bias():
    with pytest.raises(ValueError, match="give base_lr too"):
        get_default_optimizer_params(Net(), bias_lr_factor=2.0)
    with pytest.raises(ValueError, match="`bias` is in overrides"):
        get_default_optimizer_params(
            Net(), weight_decay_bias=0.0, overrides={"bias": {"weight_decay": 0.1}}
        )


def test_optimizer_of_the_config():
    optimizer = build_optimizer(tree(BASE_LR=0.02, MOMENTUM=0.8, NESTEROV=True), Net())
    decay, no_decay = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD)
    assert (len(decay["params"]), decay["weight_decay"]) == (3, 1e-4)
    assert (len(no_decay["params"]), no_decay["weight_decay"]) == (4, 0.0)
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"]) == (0.02, 0.8)
        assert group["nesterov"] and group["fused"]


@pytest.mark.parametrize(
    "config, golden",
    [
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", [(84, 1e-4)]),
        ("Misc/mask_rcnn_R_50_FPN_3x_gn.yaml", [(74, 1e-4), (116, 0.0)]),
    ],
)
def test_groups_of_official_models(config, golden):
    # specs/training.md: detectron2's own counts.
    cfg = model_zoo.get_config(config)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        optimizer = build_optimizer(cfg, build_model(cfg))
    groups = [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == golden


def test_schedule_of_the_config():
    optimizer = build_optimizer(tree(), Net())
    build_lr_scheduler(tree(WARMUP_FACTOR=0.5), optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0005)


def with_gradients(*gradients: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return parameters


@pytest.mark.parametrize(
    "clip, expected",
    [
        ({"clip_type": "value", "clip_value": 1.0}, [[1.0, -1.0], [0.5]]),
        ({"clip_type": "norm", "clip_value": 1.0}, [[0.6, -0.8], [0.5]]),
        ({"clip_type": "norm", "clip_value": 1.0, "norm_type": 1.0}, [[3 / 7, -4 / 7], [0.5]]),
    ],
)
def test_clips_each_parameter_inside_step(clip, expected):
    parameters = with_gradients([3.0, -4.0], [0.5])
    solver = SolverConfig(clip_gradients=ClipGradientsConfig(enabled=True, **clip))
    optimizer = solver.add_clipping(torch.optim.SGD(parameters, lr=1.0))
    torch.testing.assert_close(parameters[0].grad, torch.tensor([3.0, -4.0]))
    optimizer.step()
    for parameter, want in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), -torch.tensor(want), atol=1e-5, rtol=1e-5)


def test_clips_what_amp_has_unscaled():
    (parameter,) = with_gradients([0.0])
    optimizer = build_optimizer(
        tree(**{"CLIP_GRADIENTS.ENABLED": True, "BASE_LR": 1.0, "WEIGHT_DECAY": 0.0}),
        nn.ParameterList([parameter]),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    parameter.grad = None
    scaler.scale(parameter.sum() * 0.5).backward()
    assert parameter.grad.item() == 512.0
    scaler.step(optimizer)
    assert parameter.item() == -0.5  # clipping the scaled gradient would have left 1 / 1024


def test_clipping_works_behind_a_schedule_and_leaves_no_trace_in_the_state():
    (parameter,) = with_gradients([5.0])
    cfg = tree(**{"CLIP_GRADIENTS.ENABLED": True, "WARMUP_ITERS": 0})
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)([parameter], lr=1.0)
    build_lr_scheduler(cfg, optimizer)
    optimizer.step()
    assert parameter.item() == -1.0
    assert set(optimizer.state_dict()) == {"state", "param_groups"}


def test_clipping_is_off_by_default():
    (parameter,) = with_gradients([5.0])
    optimizer = maybe_add_gradient_clipping(tree(), torch.optim.SGD([parameter], lr=1.0))
    optimizer.step()
    assert parameter.item() == -5.0


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("LR_SCHEDULER_NAME", "Cosine", "must be one of WarmupMultiStepLR, WarmupCosineLR"),
        ("WARMUP_METHOD", "burnin", '"linear" or "constant", is "burnin"'),
        ("BASE_LR", 0.0, r"SOLVER.BASE_LR must be float > 0, is 0.0 \(set by command"),
        ("BASE_LR_END", 1.0, "BASE_LR_END must be at most BASE_LR = 0.001, is 1.0"),
        ("STEPS", (20, 10), r"STEPS must be ascending, are \(20, 10\)"),
        ("CLIP_GRADIENTS.CLIP_TYPE", "full", '"value" or "norm", is "full"'),
    ],
)
def test_refuses_values_that_cannot_work(key, value, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(tree(**{key: value}), Net())


def test_the_fused_optimizer_steps_as_the_definition():
    torch.manual_seed(0)
    model = Net()
    optimizer = SolverConfig(base_lr=0.1, weight_decay=0.01).build_optimizer(model)
    weight, velocity = model.conv.weight.detach().clone(), 0
    for _ in range(3):
        gradient = torch.randn_like(weight)
        model.conv.weight.grad = gradient.clone()
        optimizer.step()
        velocity = 0.9 * velocity + gradient + 0.01 * weight
        weight = weight - 0.1 * velocity
        torch.testing.assert_close(model.conv.weight.detach(), weight)
