"""How far an artefact of each precision may be from the unfused network, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from repconv.proof.comparing import FLOORS

RUNTIME_FACTOR = 4.0
"""A runtime may round this many times as much as the unfused network does in PyTorch in the same precision: others
choose other algorithms for the same sums. OpenVINO's float32 error of repvgg_a0 is 2.2 times PyTorch's."""

INT8_RMS = 0.4
"""8 dB of signal over noise. A step of the range of a normal signal (four deviations each way) leaves noise of 0.9 %
of its deviation in 8 bits; the noise of L layers adds as the root of L, and is several times that for activations with
long tails. The shipped network comes out at 2 to 6 %, networks of random weights on noise, where nothing damps an
error, at 3 to 56 %. Outputs that have nothing to do with the network's lie at 100 % and more."""


@dataclass(frozen=True)
class Tolerance:
    """What is accepted.

    measure: `max`, the largest difference over the root mean square of the reference, or `rms`, the root mean square
        of the difference over it.
    """

    measure: str
    limit: float
    reason: str


def tolerance_for(precision: str, asked: float | None = None) -> Tolerance:
    """The tolerance of a precision; `asked` overrides its limit."""
    if precision == "int8":
        found = Tolerance("rms", INT8_RMS, "int8 leaves 255 steps: judged by the mean, not the worst")
    else:
        dtype = DTYPES[precision]
        name = str(dtype).removeprefix("torch.")
        found = Tolerance(
            "max",
            FLOORS[dtype],
            f"the floor for {name}, or {RUNTIME_FACTOR:g} x the unfused network's own error in {name}",
        )
    return found if asked is None else Tolerance(found.measure, asked, "as asked for")


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
"""The dtype of a precision's inputs and outputs."""
