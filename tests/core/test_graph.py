"""Tracing: what a functional operation is replaced by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qil_deploy.graph import trace


def test_names_that_would_collide_are_kept_apart() -> None:
    """A functional pooling must not take the place of a module that has its node's name."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.max_pool2d = nn.MaxPool2d(4)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.max_pool2d(nn.functional.relu(self.conv(x)), 2)
            logits: Tensor = self.fc(torch.flatten(self.max_pool2d(x), 1))
            return logits

    traced = trace(Network(), torch.zeros(1, 1, 8, 8))

    sizes = [module.kernel_size for module in traced.modules() if isinstance(module, nn.MaxPool2d)]
    assert set(sizes) == {2, 4}
    assert traced(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
