"""Five small networks for 8x8 pictures, written the way people write them in PyTorch; all give 10 logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Returns a convolution without bias that keeps the size (at stride 1), and its BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def cnn() -> nn.Module:
    """Returns a VGG-like net: Conv, BatchNorm, ReLU four times, pooled twice, a hidden layer and a classifier."""
    return nn.Sequential(
        *(*conv_bn(1, 32), nn.ReLU()),
        *(*conv_bn(32, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(*conv_bn(32, 64), nn.ReLU()),
        *(*conv_bn(64, 64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 4, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where size or width change."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, outputs, stride=stride)
        self.conv2 = conv_bn(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns relu(conv2(relu(conv1(x))) + shortcut(x))."""
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


def resnet() -> nn.Module:
    """Returns a ResNet of five basic blocks: 16, 32 and 64 channels, halved in size twice."""
    return nn.Sequential(
        *(*conv_bn(1, 16), nn.ReLU()),
        BasicBlock(16, 16),
        BasicBlock(16, 32, stride=2),
        BasicBlock(32, 32),
        BasicBlock(32, 64, stride=2),
        BasicBlock(64, 64),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate computed from the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x * gate, the gate being one number per picture and channel."""
        means = x.mean((2, 3), keepdim=True)
        return x * nn.functional.hardsigmoid(self.expand(torch.relu(self.reduce(means))))


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, convolve each channel alone, gate, narrow again; added to x where shapes allow."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.expand = conv_bn(inputs, hidden, kernel=1)
        self.depthwise = conv_bn(hidden, hidden, stride=stride, groups=hidden)
        self.gate = SqueezeExcite(hidden, hidden // 4)
        self.project = conv_bn(hidden, outputs, kernel=1)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, without an activation after the projection."""
        wide = nn.functional.hardswish(self.depthwise(nn.functional.hardswish(self.expand(x))))
        narrow: Tensor = self.project(self.gate(wide))
        return x + narrow if self.residual else narrow


def mobilenet() -> nn.Module:
    """Returns a net like MobileNetV3: five inverted residuals with depthwise convolutions and squeeze-excite gates."""
    return nn.Sequential(
        *(*conv_bn(1, 16), nn.Hardswish()),
        InvertedResidual(16, 64, 16),
        InvertedResidual(16, 64, 24, stride=2),
        InvertedResidual(24, 96, 24),
        InvertedResidual(24, 96, 32, stride=2),
        InvertedResidual(32, 128, 32),
        *(*conv_bn(32, 128, kernel=1), nn.Hardswish()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )


class EncoderBlock(nn.Module):
    """A transformer block, normalised before attention and before the feed-forward part; q, k and v in one Linear."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the tokens (batch, tokens, width) after attention and feed-forward."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        feed_forward: Tensor = self.feed_forward(self.norm2(x))
        return x + feed_forward


class ViT(nn.Module):
    """A vision transformer: 16 patches of 2x2 pixels and a class token, whose last state is classified."""

    def __init__(self, width: int = 64, heads: int = 4, hidden: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.cls = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (batch, 10)."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.cls.expand(x.shape[0], -1, -1), patches), dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


class LSTM(nn.Module):
    """Two bidirectional LSTM layers that read the picture row by row; the mean of all states is classified."""

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (batch, 10)."""
        states, _ = self.lstm(x.reshape(-1, 8, 8))
        logits: Tensor = self.head(states.mean(1))
        return logits
