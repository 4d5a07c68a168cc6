"""How far an artefact of each precision may be from the unfused network, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from repconv.agreement import FLOORS, OWN_ERROR_FACTOR

INT8_RMS = 0.25
"""12 dB of signal over noise. A uniform step over the range of a normal signal (about four deviations each way) leaves
noise of 0.9 % of its deviation in 8 bits; the noise of L layers adds as the root of L, and of activations with long
tails, whose range is ten deviations and more, it is several times that. Networks of 20 to 70 layers come out at 3 to
20 %; a scale that is wrong, or weights of one scale a tensor whose ranges branches have spread, lie above."""


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
            "max", FLOORS[dtype],
            f"the floor for {name}, or {OWN_ERROR_FACTOR:g} x the unfused network's own error in {name}",
        )  # fmt: skip
    return found if asked is None else Tolerance(found.measure, asked, "as asked for")


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
"""The dtype of a precision's inputs and outputs."""
