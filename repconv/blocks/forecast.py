"""What half precision and int8 will make of a fused network, told before it is exported.

Folding branches adds kernels and scales them channel by channel, so weights can spread over a wider range than those of
the `3x3` branch alone, and int8 with one scale a tensor gives small channels few of its 255 steps. One scale a channel
does not mind. Half precision ends at 65504, which folded weights, or activations, may pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..errors import FusionError
from ..proof.report import FusionReport
from .block import RepBlock
from .branches import Branch

FP16_MAX = 65504.0
"""The largest number of half precision."""

INT8_STEPS = 127
"""Symmetric int8 weights are whole numbers from -127 to 127 times a scale."""


@dataclass(frozen=True)
class WeightForecast:
    """What quantising one weight costs.

    peak: largest magnitude. int8_per_tensor, int8_per_channel: root mean square error over root mean square of the
    weight, with one symmetric scale for all of it or for each output channel.
    """

    peak: float
    int8_per_tensor: float
    int8_per_channel: float


@dataclass(frozen=True, kw_only=True)
class LayerForecast:
    """One convolution of the fused network.

    fused: its weight. own: the folded weight of the block's `3x3` branch, gate included; None if the layer was no block
    with such a branch. bias_peak: largest magnitude of its bias. input_peak, output_peak: of its activations, None if
    the inputs never reached it.
    """

    name: str
    geometry: str
    fused: WeightForecast
    own: WeightForecast | None
    bias_peak: float
    input_peak: float | None
    output_peak: float | None

    @property
    def range_growth(self) -> float | None:
        """How many times wider the weights are than those of the `3x3` branch; None if there was no such."""
        return None if self.own is None or not self.own.peak else self.fused.peak / self.own.peak

    @property
    def fp16_overflow(self) -> str | None:
        """What of this layer half precision cannot hold, in words; None if all fits."""
        peaks = {
            "a weight": self.fused.peak, "a bias": self.bias_peak,
            "an input": self.input_peak, "an output": self.output_peak,
        }  # fmt: skip
        over = [f"{what} of {peak:.3g}" for what, peak in peaks.items() if peak is not None and not peak <= FP16_MAX]
        return ", ".join(over) or None

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON; what is not finite is None."""
        known = {**asdict(self), "range_growth": self.range_growth, "fp16_overflow": self.fp16_overflow}
        return {key: _plain(value) for key, value in known.items()}


@dataclass(frozen=True)
class Forecast:
    """Every folded layer, in the order of the report."""

    layers: tuple[LayerForecast, ...]

    @property
    def fp16_overflows(self) -> tuple[LayerForecast, ...]:
        """The layers half precision cannot hold."""
        return tuple(layer for layer in self.layers if layer.fp16_overflow)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Layers the inputs never reached, of whose activations nothing is known."""
        return tuple(layer.name for layer in self.layers if layer.output_peak is None)

    @property
    def verdict(self) -> str:
        """One or two sentences: whether half precision holds it, and which scales int8 weights need."""
        if not self.layers:
            return "nothing was folded, so there is nothing to forecast"
        over = self.fp16_overflows
        if over:
            rest = f" and {len(over) - 1} more" if len(over) > 1 else ""
            half = f"fp16 overflows at {over[0].name or 'the model'} ({over[0].fp16_overflow}){rest}"
        else:
            peaks = [p for layer in self.layers for p in (layer.input_peak, layer.output_peak) if p is not None]
            peak = max(peaks, default=0.0)
            half = f"fp16 holds all: activations reach {peak:.3g} of {FP16_MAX:.0f}"
        if self.unseen:
            half += f" (layers the inputs never reached: {len(self.unseen)})"
        worst = max(self.layers, key=lambda layer: layer.fused.int8_per_tensor)
        tensor, channel = worst.fused.int8_per_tensor, worst.fused.int8_per_channel
        before = "" if worst.own is None else f" ({worst.own.int8_per_tensor:.1%} in its 3x3 alone)"
        return (
            f"{half}. int8 weights: at worst {tensor:.1%} error with one scale a tensor{before}, {channel:.1%} with "
            f"one a channel, at {worst.name or 'the model'}"
        )

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON, verdict included."""
        return {"verdict": self.verdict, "layers": [layer.to_dict() for layer in self.layers]}


def forecast(model: nn.Module, fused: nn.Module, report: FusionReport, inputs: Sequence[Tensor]) -> Forecast:
    """What fp16 and int8 will make of each layer of `fused`.

    Args:
        model: the network before fusing, in evaluation mode.
        fused: what `fuse(model)` returned.
        report: what it returned besides.
        inputs: batches [n, c, h, w] like those the network will see; activations are measured on them, in the dtype
            they come in.

    Raises:
        FusionError: `model`, `fused` and `report` do not belong together.
    """
    convolutions = {layer.name: _convolution(fused, layer.name) for layer in report.layers}
    peaks = _activations(fused, convolutions, inputs)
    layers = []
    for layer in report.layers:
        conv = convolutions[layer.name]
        own = _own_weight(_at(model, layer.name))
        seen = peaks.get(layer.name)
        layers.append(
            LayerForecast(
                name=layer.name,
                geometry=layer.geometry,
                fused=weigh(conv.weight),
                own=None if own is None else weigh(own),
                bias_peak=0.0 if conv.bias is None else _peak(conv.bias),
                input_peak=None if seen is None else seen[0],
                output_peak=None if seen is None else seen[1],
            )
        )
    return Forecast(tuple(layers))


def weigh(weight: Tensor) -> WeightForecast:
    """The range of `weight` [o, i/g, kh, kw] and what int8 would cost it."""
    exact = weight.detach().double()
    peak = _peak(exact)
    return WeightForecast(peak, _int8_error(exact, exact.abs().amax()), _int8_error(exact, _channel_peaks(exact)))


def _channel_peaks(weight: Tensor) -> Tensor:
    return weight.abs().amax((1, 2, 3), keepdim=True)


def _int8_error(weight: Tensor, peak: Tensor) -> float:
    """Root mean square error of symmetric int8 with the largest number at `peak`, over that of `weight` itself."""
    step = peak.clamp_min(torch.finfo(weight.dtype).tiny) / INT8_STEPS
    error = (weight / step).round() * step - weight
    size = float(weight.norm())
    return float(error.norm()) / size if size else 0.0


def _peak(values: Tensor) -> float:
    """The largest magnitude; NaN if any value is."""
    return float(values.detach().double().abs().max()) if values.numel() else 0.0


def _own_weight(block: nn.Module) -> Tensor | None:
    """The folded weight of a block's `3x3` branch with its gate."""
    branch = dict(block.branches).get("3x3") if isinstance(block, RepBlock) else None
    if not isinstance(block, RepBlock) or not isinstance(branch, Branch):
        return None
    with torch.no_grad():
        kernel = branch.kernel()
        return (kernel * block.gate("3x3")).weight if "3x3" in block.branch_set.searchable else kernel.weight


def _at(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise FusionError(
            f"the network has no {name}, which the report names: give the network, what fuse returned for it, and its "
            "report"
        ) from None


def _convolution(fused: nn.Module, name: str) -> nn.Conv2d:
    conv = _at(fused, name)
    if not isinstance(conv, nn.Conv2d):
        raise FusionError(
            f"{name or 'the model'} is a {type(conv).__name__}, not the folded convolution the report names: give what "
            "fuse returned"
        )
    return conv


def _activations(
    fused: nn.Module, layers: Mapping[str, nn.Module], inputs: Sequence[Tensor]
) -> dict[str, tuple[float, float]]:
    """Largest magnitudes of the input and output of each layer that `inputs` reach."""
    peaks: dict[str, tuple[float, float]] = {}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        before = peaks.get(name, (0.0, 0.0))
        now = (_peak(x), _peak(y))
        peaks[name] = (_worse(before[0], now[0]), _worse(before[1], now[1]))

    handles = [
        layer.register_forward_hook(lambda _, given, y, name=name: see(name, given[0], y))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            for x in inputs:
                fused(x)
    finally:
        for handle in handles:
            handle.remove()
    return peaks


def _worse(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
