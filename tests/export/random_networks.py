"""Random small CNNs for `test_random_networks`: a list of steps, each of which is valid on whatever came before.

A step names an operation and a few small numbers; `RandomNetwork` reads the numbers modulo what is possible (which of
the tensors so far, which window still fits), so that every list of steps is a network and hypothesis can shorten it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

Operation = Literal[
    "conv",
    "depthwise",
    "norm",
    "act",
    "maxpool",
    "avgpool",
    "upsample",
    "add",
    "concat",
    "dropout",
    "split",
    "shuffle",
    "crop",
    "product",
    "gate",
    "pad",
    "smooth upsample",
    "transposed",
    "uneven average",
    "scale",
    "turn round",
    "rows",
    "pooled rows",
    "longer rows",
]
Head = Literal[
    "pooled",
    "flat",
    "tiles",
    "mean logits",
    "signed mean logits",
    "map logits",
    "sum of two",
    "norm of rows",
    "map",
    "several",
]

OPERATIONS: tuple[Operation, ...] = (
    "conv",
    "conv",
    "conv",
    "depthwise",
    "add",
    "add",
    "concat",
    "concat",
    "norm",
    "act",
    "act",
    "maxpool",
    "avgpool",
    "upsample",
    "dropout",
    "split",
    "shuffle",
    "crop",
    "product",
    "gate",
    "pad",
    "smooth upsample",
    "transposed",
    "uneven average",
    "scale",
    "turn round",
    "rows",
    "pooled rows",
    "longer rows",
)
HEADS: tuple[Head, ...] = (
    "pooled",
    "flat",
    "tiles",
    "mean logits",
    "signed mean logits",
    "map logits",
    "sum of two",
    "norm of rows",
)
"""Heads that return one row of logits."""
MAPS: tuple[Head, ...] = ("map", "several")
"""Other heads: a map; a map, values from within and a row."""
ACTIVATIONS: tuple[Callable[[int], nn.Module], ...] = (
    lambda _: nn.ReLU(),
    lambda _: nn.ReLU6(),
    lambda _: nn.Hardtanh(0.0, 0.8),
    lambda _: nn.Sigmoid(),
    lambda _: nn.Hardsigmoid(),
    lambda _: nn.SiLU(),
    lambda _: nn.Hardswish(),
    lambda _: nn.LeakyReLU(0.2),
    lambda _: nn.PReLU(),
    lambda _: nn.Hardtanh(-0.5, 0.7),
    lambda _: nn.Hardtanh(0.1, 0.9),
    lambda channels: _slopes(channels, 1.0),
    lambda channels: _slopes(channels, 1.6),
)
"""Each made for so many channels."""
LARGEST_CHANNELS, LARGEST_SIZE = 16, 16


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        operation: what is done.
        back: how many tensors before the newest the (first) operand is.
        other: how many tensors before the newest the second operand is.
        window, stride, padding, dilation: taken modulo what fits.
        channels: of a convolution's result.
        groups: of a convolution, where they divide the channels.
        norm, bias: whether BatchNorm follows; whether the convolution has a bias.
        act: 0 none, others count in `ACTIVATIONS`.
    """

    operation: Operation
    back: int = 0
    other: int = 0
    window: int = 0
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    channels: int = 4
    groups: int = 1
    norm: bool = True
    bias: bool = False
    act: int = 1


def steps() -> st.SearchStrategy[Step]:
    """Steps of all kinds; mostly on the newest tensor."""
    recent = st.sampled_from((0, 0, 0, 1, 1, 2, 3))
    return st.builds(
        Step,
        operation=st.sampled_from(OPERATIONS),
        back=recent,
        other=recent,
        window=st.integers(0, 3),
        stride=st.sampled_from((1, 1, 2)),
        padding=st.integers(0, 2),
        dilation=st.sampled_from((1, 1, 1, 2)),
        channels=st.sampled_from((4, 4, 2, 6)),
        groups=st.sampled_from((1, 1, 2)),
        norm=st.booleans(),
        bias=st.booleans(),
        act=st.sampled_from((0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)),
    )


class Part(nn.Module):
    """One piece of a tensor that is split along its channels."""

    def __init__(self, index: int, sizes: list[int]) -> None:
        super().__init__()
        self.index, self.sizes = index, sizes

    def forward(self, x: Tensor) -> Tensor:
        """Return it."""
        return torch.split(x, self.sizes, 1)[self.index]


class Turned(nn.Module):
    """Channels of each group in turn, rows and columns exchanged."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Return them."""
        apart = x.view(x.shape[0], self.groups, x.shape[1] // self.groups, *x.shape[2:])
        return apart.permute(0, 2, 1, 4, 3).flatten(1, 2)


class Crop(nn.Module):
    """A part of an image, or every other pixel of it."""

    def __init__(self, step: int, start: int) -> None:
        super().__init__()
        self.step, self.start = step, start

    def forward(self, x: Tensor) -> Tensor:
        """Return it."""
        return x[:, :, self.start :: self.step, : -1 - self.start]


class Scaled(nn.Module):
    """Scales and shifts of channels, of numbers and of parameters."""

    def __init__(self, form: int, channels: int) -> None:
        super().__init__()
        self.form = form
        self.gain, self.added = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return them."""
        if self.form == 0:
            return x * self.gain.view(1, -1, 1, 1)
        if self.form == 1:
            return (0.7 - x) / 1.3
        if self.form == 2:
            return x * self.gain[:, None, None] + self.added
        return ((0.25 + x.permute(0, 2, 3, 1)) * self.gain).permute(0, 3, 1, 2)


class TurnedRound(nn.Module):
    """Flipped, rolled, repeated, or averaged along one direction."""

    def __init__(self, form: int, dim: int) -> None:
        super().__init__()
        self.form, self.dim = form, dim

    def forward(self, x: Tensor) -> Tensor:
        """Return it."""
        if self.form == 0:
            return x.flip(self.dim)
        if self.form == 1:
            return x.roll(-1, self.dim)
        if self.form == 2:
            return x.repeat(*(2 if dim == self.dim else 1 for dim in range(4)))
        return x.mean(self.dim, keepdim=True)


class Rows(nn.Module):
    """The pixels of an image convolved as one row, perhaps added to itself, normalized and activated."""

    def __init__(self, channels: int, step: Step) -> None:
        super().__init__()
        kernel = 1 + 2 * (step.window % 2)
        self.conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, bias=step.bias)
        self.norm = nn.BatchNorm1d(channels) if step.norm else nn.Identity()
        self.act = ACTIVATIONS[step.act - 1](channels) if step.act else nn.Identity()
        self.twice = step.padding == 2

    def forward(self, x: Tensor) -> Tensor:
        """Return an image of the same shape."""
        row = self.conv(x.flatten(2))
        result: Tensor = self.act(self.norm(row + row if self.twice else row))
        return result.view(x.shape)


class RowsWindowed(nn.Module):
    """The pixels of an image pooled or padded as one row, in rows of the former length as far as possible."""

    def __init__(self, channels: int, step: Step) -> None:
        super().__init__()
        kernel = 2 + step.padding
        padding = min(step.padding, kernel // 2)
        self.before = nn.Identity() if step.norm else nn.ConstantPad1d((step.padding, 1), 0.3 * (step.act % 2))
        self.window: nn.Module = (
            nn.MaxPool1d(kernel, step.stride, padding, step.dilation, ceil_mode=step.bias),
            nn.AvgPool1d(kernel, step.stride, padding, step.bias, count_include_pad=step.act > 3),
            (nn.AdaptiveMaxPool1d if step.bias else nn.AdaptiveAvgPool1d)(step.channels),
            nn.Sequential(nn.ReplicationPad1d((1, kernel)), nn.Conv1d(channels, channels, kernel, step.stride)),
        )[step.window]

    def forward(self, x: Tensor) -> Tensor:
        """Return an image."""
        return _folded(self.window(self.before(x.flatten(2))), x.shape[3])


class RowsEnlarged(nn.Module):
    """The pixels of an image upsampled as one row."""

    def __init__(self, channels: int, step: Step) -> None:
        super().__init__()
        kernel = 2 + step.padding
        up = nn.ConvTranspose1d(channels, channels, kernel, 2, kernel // 2, step.dilation - 1, bias=step.bias)
        self.up = (up, up, nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="linear"))[step.window]
        self.norm = nn.BatchNorm1d(channels) if step.norm else nn.Identity()
        self.act = ACTIVATIONS[step.act - 1](channels) if step.act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return an image."""
        return _folded(self.act(self.norm(self.up(x.flatten(2)))), x.shape[3])


def _folded(rows: Tensor, width: int) -> Tensor:
    """Reshape rows [N, C, L] to images of a width, or to one row if they are shorter; drop the remainder."""
    width = min(width, rows.shape[2])
    height = rows.shape[2] // width
    return rows[:, :, : height * width].reshape(rows.shape[0], rows.shape[1], height, width)


def _slopes(channels: int, steepest: float) -> nn.PReLU:
    act = nn.PReLU(channels)
    nn.init.uniform_(act.weight, -0.5, steepest)
    return act


class RandomNetwork(nn.Module):
    """The network of a list of steps and a head."""

    def __init__(self, plan: tuple[Step, ...], head: Head, channels: int, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.calls: list[tuple[str, Callable[..., Tensor], tuple[int, ...]]] = []
        self.returned: list[int] = []
        self.tensors = [torch.zeros(2, channels, *size)]
        with torch.no_grad():
            self._conv(Step("conv", padding=1, window=2), groups=1)
            for step in plan:
                self._add_step(step)
            self._add_head(head, classes)
        self.returned.append(len(self.tensors) - 1)
        self.tensors = []

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        tensors = [x]
        for _, function, sources in self.calls:
            tensors.append(function(*(tensors[source] for source in sources)))
        results = tuple(tensors[position] for position in self.returned)
        return results if len(results) > 1 else results[0]

    def _call(self, name: str, function: Callable[..., Tensor], *sources: int) -> None:
        """Append a call of a module (stored under a name of its own) or function; -1 is the newest tensor."""
        name = f"{name}{len(self.calls)}"
        if isinstance(function, nn.Module):
            self.add_module(name, function.eval())
        positions = tuple(source % len(self.tensors) for source in sources)
        self.calls.append((name, function, positions))
        self.tensors.append(function(*(self.tensors[position] for position in positions)))

    def layers(self) -> list[str]:
        """Return the names of the convolutions and linear layers that the result depends on, in order."""
        needed = set(self.returned)
        names = []
        for position in range(len(self.calls), 0, -1):
            name, function, sources = self.calls[position - 1]
            if position in needed:
                needed.update(sources)
                if isinstance(function, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
                    names.append(name)
                elif isinstance(function, Rows | RowsWindowed | RowsEnlarged):
                    inside = (nn.Conv1d, nn.ConvTranspose1d)
                    names += [f"{name}.{key}" for key, layer in function.named_modules() if isinstance(layer, inside)]
        return names[::-1]

    def _newest(self) -> int:
        return len(self.tensors) - 1

    def _source(self, back: int) -> int:
        """Return the index of a source; only the first convolution reads the image (tensor 0) directly."""
        return max(1, self._newest() - back)

    def _size(self, source: int) -> int:
        return min(self.tensors[source].shape[2:])

    def _add_step(self, step: Step) -> None:
        source = self._source(step.back)
        size = self._size(source)
        channels = self.tensors[source].shape[1]
        if step.operation == "conv":
            self._conv(step, step.groups if channels % step.groups == 0 else 1, source)
        elif step.operation == "depthwise":
            self._conv(step, channels, source)
        elif step.operation == "norm":
            self._call("norm", nn.BatchNorm2d(channels), source)
            self._act(step.act)
        elif step.operation == "act":
            self._act(step.act or 1, source)
        elif step.operation in ("maxpool", "avgpool"):
            self._pool(step, min(1 + step.window, size), source)
        elif step.operation == "upsample" and 2 * max(self.tensors[source].shape[2:]) <= LARGEST_SIZE:
            self._call("up", nn.Upsample(scale_factor=2), source)
        elif step.operation in ("add", "concat", "product", "gate"):
            self._combine(step, source, self._source(step.other))
        elif step.operation == "dropout":
            self._call("dropout", nn.Dropout(0.3), source)
        else:
            self._move(step, source)

    def _combine(self, step: Step, first: int, second: int) -> None:
        if step.operation == "add":
            self._add(first, second, step)
        elif step.operation == "concat":
            self._concat(first, second, twice=step.bias)
        else:
            self._multiply(first, second, step)

    def _move(self, step: Step, source: int) -> None:
        channels, size = self.tensors[source].shape[1], self._size(source)
        if step.operation == "split" and channels > 1:
            for index in range(2):
                self._call("part", Part(index, [channels // 2, channels - channels // 2]), source)
        elif step.operation == "shuffle" and channels % 2 == 0:
            self._call("shuffle", nn.ChannelShuffle(2) if step.bias else Turned(2), source)
        elif step.operation == "crop" and size > 2:
            self._call("crop", Crop(step.stride, step.window % 2), source)
        elif step.operation == "pad" and size < LARGEST_SIZE:
            self._call("pad", _padding(step), source)
        elif step.operation == "uneven average" and size > 1:
            window = min(2 + step.window, size)
            pool = nn.AvgPool2d(window, step.stride, window // 2, ceil_mode=step.bias, count_include_pad=step.norm)
            self._call("pool", pool if step.act else nn.AdaptiveAvgPool2d((size - 1, 2)), source)
        elif step.operation == "scale":
            self._call("scale", Scaled(step.window, channels), source)
            self._act(step.act)
        elif step.operation == "turn round":
            self._turn(step, source)
        elif step.operation in ("rows", "pooled rows"):
            rows = Rows if step.operation == "rows" or size <= 2 else RowsWindowed
            self._call("rows", rows(channels, step), source)
        else:
            self._enlarge(step, source)

    def _turn(self, step: Step, source: int) -> None:
        form, dim = step.window, 2 + step.padding % 2 if step.window == 3 else 1 + step.padding
        if form != 2 or 2 * self.tensors[source].shape[dim] <= LARGEST_CHANNELS:
            self._call("turned", TurnedRound(form, dim), source)

    def _enlarge(self, step: Step, source: int) -> None:
        channels, *sizes = self.tensors[source].shape[1:]
        if 2 * max(sizes) > LARGEST_SIZE:
            return
        if step.operation == "smooth upsample":
            self._call("up", nn.Upsample(scale_factor=(2, 1 + step.stride % 2), mode="bilinear"), source)
        elif step.operation == "transposed" and min(sizes) > 1:  # of a single pixel nothing could be left
            kernel, groups = 2 + step.window, step.groups if channels % step.groups == 0 else 1
            up = nn.ConvTranspose2d(channels, 4, kernel, 2, kernel // 2, step.window % 2, groups, step.bias)
            self._call("up", up, source)
            if step.norm:
                self._call("norm", nn.BatchNorm2d(4), self._newest())
            self._act(step.act)
        elif step.operation == "longer rows" and min(sizes) > 1:
            self._call("rows", RowsEnlarged(channels, step), source)

    def _conv(self, step: Step, groups: int, source: int = 0) -> None:
        channels, size = self.tensors[source].shape[1], self._size(source)
        out = channels if groups == channels else step.channels * groups
        kernel = 1 + step.window
        dilation = step.dilation if kernel > 1 else 1
        padding = min(step.padding, kernel)
        if dilation * (kernel - 1) + 1 > size + 2 * padding:
            kernel = 1
        self._call("conv", nn.Conv2d(channels, out, kernel, step.stride, padding, dilation, groups, step.bias), source)
        if step.norm:
            self._call("norm", nn.BatchNorm2d(out), self._newest())
        self._act(step.act)

    def _pool(self, step: Step, window: int, source: int) -> None:
        padding = min(step.padding, window // 2)
        if step.operation == "maxpool":
            self._call("pool", nn.MaxPool2d(window, step.stride, padding, ceil_mode=step.bias), source)
        else:
            self._call("pool", nn.AvgPool2d(window, step.stride, padding), source)

    def _act(self, act: int, source: int | None = None) -> None:
        if act:
            read = self._newest() if source is None else source
            self._call("act", ACTIVATIONS[act - 1](self.tensors[read].shape[1]), read)

    def _add(self, first: int, second: int, step: Step) -> None:
        """Add two tensors, the second through a convolution if the shapes differ only in channels."""
        a, b = self.tensors[first].shape, self.tensors[second].shape
        if a[2:] != b[2:]:
            second = first
        elif a != b:
            self._call("project", nn.Conv2d(b[1], a[1], 1, bias=step.bias), second)
            second = self._newest()
        self._call("add", torch.add, first, second)
        self._act(step.act)

    def _multiply(self, first: int, second: int, step: Step) -> None:
        """Multiply two tensors, or one by a gate of one pixel or one channel computed from the other."""
        if step.operation == "gate":
            channels = self.tensors[first].shape[1] if step.bias else 1
            if step.bias:
                self._call("squeeze", nn.AdaptiveAvgPool2d(1), second)
                second = self._newest()
            elif self.tensors[first].shape[2:] != self.tensors[second].shape[2:]:
                second = first
            self._call("excite", nn.Conv2d(self.tensors[second].shape[1], channels, 1), second)
            self._act(step.act)
            second = self._newest()
        elif self.tensors[first].shape != self.tensors[second].shape:
            second = first
        self._call("product", torch.mul, first, second)
        self._act(step.act)

    def _concat(self, first: int, second: int, *, twice: bool) -> None:
        if self.tensors[first].shape[2:] != self.tensors[second].shape[2:]:
            second = first
        sources = (first, second, first) if twice else (first, second)
        if sum(self.tensors[source].shape[1] for source in sources) <= LARGEST_CHANNELS:
            self._call("concat", _join, *sources)

    def _add_head(self, head: Head, classes: int) -> None:
        source = self._newest()
        channels, height, width = self.tensors[source].shape[1:]
        if head in MAPS:
            self._call("map", nn.Conv2d(channels, classes, 1 + 2 * (min(height, width) > 2), padding=0), source)
            if head == "several":
                self.returned.append(self._newest())
                within = [index + 1 for index, call in enumerate(self.calls) if call[0].startswith(("act", "add"))]
                self.returned += within[-1:]
            else:
                return
        if head == "tiles" and height % 2 == 0 and width % 2 == 0:
            self._call("pool", nn.AdaptiveAvgPool2d((2, 2)), source)
        elif head in ("mean logits", "signed mean logits", "map logits"):
            self._call("conv", nn.Conv2d(channels, classes, 1), source)
            if head != "signed mean logits":
                self._act(1)
            self._call("pool", nn.MaxPool2d((height, width)) if head == "map logits" else nn.AdaptiveAvgPool2d(1), -1)
            self._call("flatten", nn.Flatten(), -1)
            return
        elif head != "flat":
            self._call("pool", nn.AdaptiveAvgPool2d(1), source)
        self._call("flatten", nn.Flatten(), -1)
        rows = self._newest()
        features = self.tensors[rows].shape[1]
        if head in ("flat", "norm of rows"):
            self._call("hidden", nn.Linear(features, 6), rows)
            if head == "norm of rows":
                self._call("norm", nn.BatchNorm1d(6), -1)
            self._act(1)
            features = 6
        self._call("fc", nn.Linear(features, classes), -1)
        if head == "sum of two":
            self._call("fc", nn.Linear(features, classes), rows)
            self._call("add", torch.add, self._newest() - 1, self._newest())


def _padding(step: Step) -> nn.Module:
    sides = (step.window % 2, step.stride, step.padding, 1)
    return (
        nn.ZeroPad2d(sides),
        nn.ConstantPad2d(sides, 0.4),
        nn.ReplicationPad2d(sides),
        nn.ConstantPad2d(sides, -1.0),
    )[step.window]


def _join(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors, 1)
