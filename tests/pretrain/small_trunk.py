"""A trunk small enough to take many steps with in a test, with batch norm where a ResNet has it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class SmallTrunk(nn.Module):
    """Two convolutions; what `pretrain.encoders.Encoder` asks of a trunk."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = norm(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = norm(16)
        self.fc: nn.Module = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(images)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean(dim=(2, 3)))
