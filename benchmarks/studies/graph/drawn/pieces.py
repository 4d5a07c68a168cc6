"""Random networks of affine pieces, each spelled as some author spells it.

A piece is drawn for what it reads, `[n, c, pixels]` or tokens `[n, l, c]`, and tells no sizes: a network is grown
by running each piece on an example, and a piece that does not run on it, or makes too much, is left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as everybody calls it

from .draw import CONVOLUTIONS, SPREAD, Draw, Piece
from .spelled import BORDERS, SUMS, by_slices

SIDES = ((9, 8), (7, 5), (12, 10), (8, 8), (1, 9), (6, 1), (1, 1), (13,), (5, 6, 4))
"""The sides of examples, of one to three axes."""
MOST = 20_000
"""The most numbers a tensor on the way holds."""

_CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

Kind = Callable[[Draw], nn.Module]
IMAGES: dict[str, Kind] = {}
"""Pieces that read `[n, c, pixels]`."""
TOKENS: dict[str, Kind] = {}
"""Pieces that read `[n, l, c]`."""


def _image(kind: Kind) -> Kind:
    IMAGES[kind.__name__.strip("_")] = kind
    return kind


def _tokens(kind: Kind) -> Kind:
    TOKENS[kind.__name__.strip("_")] = kind
    return kind


def _edge(norm: Any, axes: int) -> Tensor:  # noqa: ANN401  # any of the norms
    made: Tensor = norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return made.view(1, -1, *(1,) * axes)


@_image
def border(d: Draw) -> nn.Module:
    """A norm, a border, and a convolution, an average or a depthwise one; with or without a branch beside it."""
    fill = d.pick(*BORDERS.values())
    same, beside, off, axes, c = (
        d.pick(True, True, False),
        d.pick(True, False),
        d.pick(0.0, 0.0, 0.3),
        d.axes,
        d.channels,
    )
    groups = d.pick(1, c)
    return Piece(
        lambda s, x: s.m(s.b(fill(s.n(s.a(x)) if same else s.n(x), _edge(s.n, axes) + off)))
        + (s.w(x) if beside else 0),
        a=d.conv(k=1, bias=False), n=d.norm(), b=d.conv(k=3, padding=0, groups=groups), m=d.norm(), w=d.conv(),
    )  # fmt: skip


@_image
def sobel(d: Draw) -> nn.Module:
    """ECBSR's branch: 1x1, its bias around, and a fixed depthwise kernel, scaled and shifted."""
    c, axes = d.channels, d.axes
    return Piece(
        lambda s, x: _CONVOLVE[axes](by_slices(s.a(x), s.a.bias.view(1, -1, *(1,) * axes)), s.scale * s.mask, s.shift,
                                     groups=c) + s.w(x),
        a=d.conv(k=1, bias=True), w=d.conv(k=3), scale=d.number(c, 1, *(1,) * axes), shift=d.number(c),
        mask=torch.randint(-2, 3, (c, 1, *(3,) * axes)).float(),
    )  # fmt: skip


@_image
def branches(d: Draw) -> nn.Module:
    """Three branches, one of them perhaps nothing but the tensor or its norm."""
    groups, axes, c, dilation = d.divisor(d.channels), d.axes, d.channels, d.pick(1, 1, 2)
    total = d.pick(*SUMS.values())
    first = [d.conv(k=3, groups=groups, dilation=dilation, padding=dilation), d.norm()]
    last: list[nn.Module] = d.pick(
        [d.norm()], [nn.Identity()], [d.conv(k=d.pick(1, 3)), d.norm()], [nn.Identity(), d.norm()]
    )
    return Piece(
        lambda s, x: total(s, [branch(x) for branch in s.c]),
        c=[nn.Sequential(*first), d.conv(k=1, groups=groups), nn.Sequential(*last)], g=d.number(3),
        by_channel=torch.randn(3, c), hot=torch.eye(3)[d.pick(0, 1, 2)].clone() * (axes > 0),
    )  # fmt: skip


@_image
def series(d: Draw) -> nn.Module:
    """Convolutions one after another: a wide 1x1 and a 3x3, strips of an axis each, depthwise and pointwise."""
    wide, axes, c = d.pick(2, 3) * d.channels, d.axes, d.channels
    sizes = [[3 if a == axis else 1 for a in range(axes)] for axis in range(axes)]
    strips = [CONVOLUTIONS[axes](c, c, k, padding=[n // 2 for n in k], bias=False) for k in sizes]
    return d.pick(
        nn.Sequential(d.conv(wide, 1, bias=False), d.norm(wide), d.conv(k=3, i=wide)),
        nn.Sequential(d.conv(wide, 1, bias=False), d.conv(k=3, i=wide), d.norm()),
        nn.Sequential(*strips, d.norm()),
        nn.Sequential(d.conv(k=3, groups=c), d.norm(), d.conv(d.pick(c, 2 * c) if c < 9 else c, 1)),
        nn.Sequential(d.conv(k=3, stride=2), d.norm(), d.conv(k=1)),
        nn.Sequential(d.conv(wide, 1), nn.ReLU(), d.conv(c, 1, i=wide), d.norm()),
    )


@_image
def transposed(d: Draw) -> nn.Module:
    """A transposed convolution and a norm, two beside one another, or with a 1x1 before or behind it."""
    c, axes, g = d.channels, d.axes, d.divisor(d.channels)
    spread = SPREAD[axes]
    return d.pick(
        nn.Sequential(spread(c, c, 3, 2, 1, 1, groups=g, bias=False), d.norm()),
        nn.Sequential(spread(c, c, 2, 2), d.norm(), d.conv(k=1)),
        nn.Sequential(d.conv(k=1), d.norm(), spread(c, c, 2, 2, bias=False)),
        Piece(
            lambda s, x: s.n(s.a(x)) + s.m(s.b(x)),
            a=spread(c, c, 4, 2, 1, bias=False), n=d.norm(), b=spread(c, c, 2, 2), m=d.norm(),
        ),
    )  # fmt: skip


@_image
def shared(d: Draw) -> nn.Module:
    """One convolution read by several norms, or on several tensors."""
    conv, c = d.conv(), d.channels
    return d.pick(
        Piece(lambda s, x: F.relu(s.n(s.c(x))) + s.m(s.c(x)), c=conv, n=d.norm(), m=d.norm()),
        Piece(lambda s, x: s.n(s.c(F.relu(x))) - s.m(s.c(x)), c=conv, n=d.norm(), m=d.norm()),
        Piece(lambda s, x: s.c(s.n(s.c(x)) * s.t), c=conv, n=d.norm(), t=d.number(*d.along(first=c))),
        Piece(lambda s, x: (y := s.c(x)) + F.relu(y), c=conv),
    )


# Movement of channels and pixels.


def _shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, *sides = x.shape
    return x.view(n, groups, c // groups, *sides).transpose(1, 2).reshape(n, c, *sides)


@_image
def moved(d: Draw) -> nn.Module:
    """A channel movement, before or behind a convolution or a norm."""
    c, axes, half = d.channels, d.axes, d.channels // 2
    order = torch.randperm(c)
    some = torch.randint(0, c, (d.pick(2, 4, 6),))
    move: Callable[[Tensor], Tensor] = d.pick(
        lambda x: x[:, order], lambda x: x.flip(1), lambda x: _shuffled(x, 2), lambda x: x.index_select(1, some),
        lambda x: torch.cat([x[:, half:], x[:, :half]], 1), lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: x[:, ::2], lambda x: x.roll(1, 1), lambda x: x.repeat_interleave(2, 1)[:, :8],
        lambda x: torch.cat([x, x], 1) if c < 8 else x, lambda x: x.unflatten(1, (2, half))[:, 0],
        lambda x: x.unfold(2, 2, 2).flatten(-2) if axes == 1 else x.transpose(2, 3),
        lambda x: x.flip(2), lambda x: x.narrow(1, 1, half), lambda x: torch.stack(x.unbind(1)[::-1], 1),
    )  # fmt: skip
    now = move(d.x).shape[1]
    return d.pick(
        Piece(lambda s, x: s.n(s.c(move(x))), c=d.conv(i=now), n=d.norm()),
        Piece(lambda s, x: s.n(move(s.c(x))), c=d.conv(), n=d.norm(now)),
        Piece(lambda s, x: move(F.relu(move(s.n(x)))) if now == c else s.n(x), n=d.norm()),
        Piece(lambda s, x: move(x) * s.t, t=d.number(*d.along(first=now))),
    )


@_image
def focus(d: Draw) -> nn.Module:
    """Space to depth, before a convolution that pads."""
    c = d.channels
    if d.axes != 2 or c > 6 or any(side % 2 for side in d.x.shape[2:]):
        raise ValueError("only of images with even sides")
    tiles: Callable[[Tensor], Tensor] = d.pick(
        lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1),
        lambda x: F.pixel_unshuffle(x, 2), lambda x: torch.cat([x[..., ::2, 1::2], x[..., 1::2, ::2]], 1),
    )  # fmt: skip
    wide = tiles(d.x).shape[1]
    return Piece(lambda s, x: s.n(s.c(tiles(x))), c=d.conv(i=wide), n=d.norm())


@_image
def windowed(d: Draw) -> nn.Module:
    """Padding and cropping, an axis at a time, around convolutions."""
    axis, axes = d.pick(*range(2, 2 + d.axes)), d.axes
    amounts = [0] * (2 * axes)
    amounts[2 * (axes + 1 - axis)], amounts[2 * (axes + 1 - axis) + 1] = d.pick(
        (1, 1), (0, 1), (-1, -1), (1, 0), (2, 2), (-1, 1)
    )
    one = [0] * axes
    one[axis - 2] = 1
    size = [3 if a + 2 == axis else 1 for a in range(axes)]
    strip = CONVOLUTIONS[axes](d.channels, d.channels, size, bias=False)
    return d.pick(
        Piece(lambda s, x: s.n(s.c(F.pad(x, amounts))), c=d.conv(padding=0), n=d.norm()),
        Piece(lambda s, x: F.pad(s.n(s.c(x)), amounts), c=d.conv(bias=False), n=d.norm()),
        Piece(lambda s, x: F.pad(s.c(x), amounts), c=d.conv(bias=False)),
        Piece(lambda s, x: s.c(x).narrow(axis, 1, x.shape[axis] - 2), c=d.conv(k=3)),
        Piece(lambda s, x: s.n(s.c(x)).narrow(axis, 1, x.shape[axis] - 2) + s.m(s.h(x)), c=d.conv(k=3, bias=False),
              n=d.norm(), h=strip, m=d.norm()),
        Piece(lambda s, x: s.c(x), c=CONVOLUTIONS[axes](d.channels, d.channels, 3, padding=one)),
    )  # fmt: skip


@_image
def averaged(d: Draw) -> nn.Module:
    """An average of windows, in series with convolutions or beside one."""
    pool: Any = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[d.axes]
    return d.pick(
        nn.Sequential(d.conv(k=1, bias=False), d.norm(), pool(3, 1)), nn.Sequential(pool(2, 2), d.conv(k=1), d.norm()),
        Piece(lambda s, x: s.n(s.p(x)) + s.c(x), n=d.norm(), p=pool(3, 1, 1), c=d.conv()),
        Piece(lambda s, x: s.p(s.n(s.c(x))) + s.q(x), n=d.norm(), p=pool(2, 2), c=d.conv(k=1), q=pool(2, 2)),
    )  # fmt: skip


# Any axis may be the channels.


def _last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def _second(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


@_image
def channels_last(d: Draw) -> nn.Module:
    """Linear layers and scales on the last axis, between transposes, with or without the tensor itself beside."""
    c, wide = d.channels, 2 * d.channels
    a, b, t, w = nn.Linear(c, wide), nn.Linear(wide, c), d.number(c), d.number(wide, c)
    pad, n = d.pick(0, 1), d.norm(wide)
    return d.pick(
        Piece(lambda s, x: x + _second(s.b(F.relu(s.a(_last(x)))) * s.t), a=a, b=b, t=t),
        Piece(lambda s, x: _second(F.gelu(_last(s.n(s.c(x))) * s.t) @ s.w.T @ s.w + s.t), c=d.conv(), n=d.norm(), t=t,
              w=w),
        Piece(lambda s, x: _second(F.relu(_last(s.c(_second(F.relu(_last(x) * s.t)))))), c=d.conv(padding=pad), t=t),
        Piece(lambda s, x: _second(s.b(_last(s.n(_second(s.a(_last(x))))))), a=a, b=b, n=n),
        Piece(lambda s, x: _second(s.l(_last(x))) + s.c(x), l=nn.Linear(c, c), c=d.conv(k=1)),
    )  # fmt: skip


@_image
def to_tokens(_: Draw) -> nn.Module:
    """Pixels in a row, channels last."""
    return Piece(lambda _, x: x.flatten(2).transpose(1, 2))


@_tokens
def to_image(d: Draw) -> nn.Module:
    """Tokens as an image of one row, or as a sequence."""
    return d.pick(Piece(lambda _, x: x.transpose(1, 2)), Piece(lambda _, x: x.transpose(1, 2).unsqueeze(2)))


@_tokens
def linear_norm(d: Draw) -> nn.Module:
    """A linear layer and a norm of its features, over tokens flattened or turned."""
    c, o = d.x.shape[2], d.pick(d.x.shape[2], 8)
    made, norm = nn.Linear(c, o, bias=d.pick(True, False)), d.norm(o, 1)
    return d.pick(
        Piece(lambda s, x: s.n(s.l(x).transpose(1, 2)).transpose(1, 2), l=made, n=norm),
        Piece(lambda s, x: s.n((y := s.l(x)).flatten(0, 1)).view(y.shape), l=made, n=norm),
        Piece(lambda s, x: s.n((y := s.l(x)).flatten(0, 1)).reshape_as(y), l=made, n=norm),
        Piece(lambda s, x: F.relu(s.l(x)) * s.t, l=made, t=d.number(o)),
    )


@_tokens
def linear_sums(d: Draw) -> nn.Module:
    """Linear layers beside one another, by any sum; products by matrices and their biases."""
    c = d.x.shape[2]
    a, b, t, w = nn.Linear(c, c), nn.Linear(c, c, bias=False), d.number(c), d.number(c, c)
    total = d.pick(SUMS["stack"], SUMS["mean"], SUMS["zip"], SUMS["unbind"], SUMS["weighed stack"], SUMS["plus"])
    return d.pick(
        Piece(lambda s, x: s.a(x) + s.b(x) * s.t, a=a, b=b, t=t),
        Piece(lambda s, x: x @ s.w + s.t, w=w, t=t), Piece(lambda s, x: s.a(x @ s.w / 3 - s.t), a=a, w=w, t=t),
        Piece(lambda s, x: torch.matmul(x, s.w * s.t) + x, w=w, t=t),
        Piece(lambda s, x: total(s, [s.a(x), s.b(x), x]), a=a, b=b, g=d.number(3)),
        Piece(lambda s, x: torch.einsum("nlc,dc->nld", s.a(x), s.w), a=a, w=w),
    )  # fmt: skip


@_tokens
def heads(d: Draw) -> nn.Module:
    """Channels as heads, parted and put together again."""
    c = d.x.shape[2]
    a, b, t = nn.Linear(c, 2 * c), nn.Linear(c, c), d.number(c)
    return d.pick(
        Piece(lambda s, x: s.b(s.a(x).view(*x.shape[:2], 2, c).permute(2, 0, 1, 3)[1]), a=a, b=b),
        Piece(lambda s, x: s.b(F.relu(s.a(x).chunk(2, -1)[0])), a=a, b=b),
        Piece(lambda s, x: (s.a(x).unflatten(2, (2, c)) * s.t).sum(2), a=a, t=t),
        Piece(lambda s, x: s.b(x.view(*x.shape[:2], 2, -1).transpose(2, 3).flatten(2)), b=b),
    )


# Constants, scales, weights that are computed, and what lies between.


@_image
def weights_computed(d: Draw) -> nn.Module:
    """A convolution whose weight is made of others, alone or beside another."""
    c, axes = d.channels, d.axes
    ones = (1,) * (axes + 1)
    convolve, pixels = _CONVOLVE[axes], (3,) * axes
    make: Callable[[Any], Tensor] = d.pick(
        lambda s: s.w * s.t, lambda s: s.w / s.w.flatten(1).norm(dim=1).view(-1, *ones), lambda s: s.w[:, :, :1],
        lambda s: (s.w - s.w.mean([*range(1, axes + 2)], True)) / (s.w.flatten(1).var(1) + 1e-5).sqrt().view(-1, *ones),
        lambda s: torch.einsum("oi...,o->oi...", s.w, s.t.flatten().sqrt()), lambda s: s.w * (s.w > 0),
        lambda s: torch.stack([s.w, s.w * 2]).sum(0), lambda s: (s.u @ s.v).view(c, c, *pixels),
        lambda s: s.w.flip(2) * torch.sigmoid(s.t), lambda s: s.w.transpose(0, 1) * s.t,
        lambda s: torch.cat([s.w[: c // 2], s.w[: c - c // 2] * s.t[:1]]), lambda s: F.pad(s.w[:, :, 1:2], (0, 1)),
    )  # fmt: skip
    beside = d.pick(True, False)
    return Piece(
        lambda s, x: s.n(convolve(x, make(s), None, 1, 1)) + s.c(x) if beside else convolve(x, make(s), None, 1, 1),
        w=d.number(c, c, *pixels), t=nn.Parameter(torch.rand(c, *ones) + 0.5), u=d.number(c, 3),
        v=d.number(3, c * 3**axes), n=d.norm(), c=d.conv(),
    )  # fmt: skip


@_image
def constants(d: Draw) -> nn.Module:
    """Scales, shifts and constants however they are made, of every pixel or of each channel."""
    c, flat, t = d.channels, d.along(), d.number(*d.along())
    return d.pick(
        Piece(lambda s, x: s.c(x) * torch.full((1, *flat), 0.5) + torch.arange(float(c)).view(flat), c=d.conv()),
        Piece(lambda s, x: (x.flip(1) / 255 - s.t) / (s.t.abs() + 0.5), t=t),
        Piece(lambda s, x: 1 - s.c(x) * s.t, c=d.conv(), t=t),
        Piece(lambda s, x: s.c(x) + s.t.expand(1, c, *x.shape[2:]) + s.e(x), c=d.conv(), t=t, e=d.conv(k=1)),
        Piece(lambda s, x: s.c(x) + torch.zeros_like(x[:, :1]) - torch.ones_like(x) * s.t, c=d.conv(), t=t),
        Piece(lambda s, x: s.c(x + s.t), c=d.conv(), t=t), Piece(lambda s, x: -s.n(x) * s.t.exp(), n=d.norm(), t=t),
        Piece(lambda s, x: x + s.c(x) * s.t.abs().sqrt() - s.t.roll(1, 0), c=d.conv(), t=t),
    )  # fmt: skip


@_image
def opaque(d: Draw) -> nn.Module:
    """What is no affine map, with an affine neighbour."""
    c = d.channels
    return d.pick(
        nn.Sequential(d.conv(k=1), nn.SiLU()), nn.Sequential(d.norm(), nn.ReLU()), nn.Sequential(d.conv(), nn.GELU()),
        Piece(lambda s, x: x * s.c(x).sigmoid(), c=d.conv(k=1)), nn.GroupNorm(2, c) if c % 2 == 0 else nn.ReLU(),
        Piece(lambda s, x: x + F.relu(s.n(s.c(x))), c=d.conv(), n=d.norm()),
        Piece(lambda s, x: x * s.c(x.mean([*range(2, x.dim())], True)).sigmoid(), c=d.conv(k=1)),
    )  # fmt: skip


@_image
def head(d: Draw) -> nn.Module:
    """A norm before all pixels are averaged or flattened, and a linear layer."""
    c = d.channels
    pool: Any = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[d.axes]
    flat = d.x[0].numel()
    if flat > 400 or d.random.random() < 0.6:
        raise ValueError("a head ends a network")
    last, other = nn.Linear(c, 5), nn.Linear(c, 5)
    return d.pick(
        nn.Sequential(d.norm(), pool(1), nn.Flatten(), last),
        nn.Sequential(d.norm(), nn.Flatten(), nn.Linear(flat, 5)),
        nn.Sequential(d.conv(k=1), nn.ReLU(), d.norm(), pool(1), nn.Flatten(), d.norm(axes=1), last),
        Piece(lambda s, x: s.a(y := s.n(x).mean([*range(2, x.dim())])) + s.b(y), n=d.norm(), a=last, b=other),
    )  # fmt: skip


def grown(seed: int, pieces: int) -> tuple[nn.Sequential, Tensor, list[str]]:
    """A network of so many pieces, an example of what it reads, and the names of its pieces."""
    choices = random.Random(seed)  # noqa: S311  # no secret
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        x = torch.randn(choices.choice((1, 2, 3)), choices.choice((4, 6)), *choices.choice(SIDES))
        y, layers, names, table = x, nn.Sequential(), list[str](), IMAGES
        while len(names) < pieces and y.dim() > 2:
            name = choices.choice(list(table))
            try:
                piece = table[name](Draw(choices, y)).eval()
                made = piece(y)
            except (RuntimeError, ValueError, IndexError):
                continue
            if 0 < made.numel() <= MOST and bool(torch.isfinite(made).all()) and float(made.abs().max()) > 1e-3:
                y = made
                layers.append(piece)
                names.append(name)
                table = {"to_tokens": TOKENS, "to_image": IMAGES}.get(name, table)
    return layers.eval(), x, names
