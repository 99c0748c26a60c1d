"""Stochastic gradient descent that does without torch.compile."""

from __future__ import annotations

from inspect import unwrap

import torch


class SGD(torch.optim.SGD):
    """torch's, for runs that compile no optimizer.

    To keep the compiler out of them, torch's own methods import it on their first call: 150 MiB of
    a process that never uses it (torch 2.15). Here they are as they were before that wrapper.
    """

    add_param_group = unwrap(torch.optim.SGD.add_param_group)
    zero_grad = unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))
    state_dict = unwrap(torch.optim.SGD.state_dict)
    load_state_dict = unwrap(torch.optim.SGD.load_state_dict)
