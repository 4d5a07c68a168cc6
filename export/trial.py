"""An artefact on trial: the form of it that runs here, run against the network it was made of, and refused in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import Tensor

from repconv.errors import VerificationError

from .artefacts.built import Built, Lowered, Network
from .artefacts.runtime import build
from .int8.layer_errors import LayerError
from .int8.quantize import quantize_onnx
from .int8.saturation import saturates_here
from .measuring import compare_with_source
from .program.int8 import twin
from .proof.evidence import Evidence, Probe
from .settings import BuildSettings, Quantization, Span
from .subject import Subject
from .ways_out import ways_out


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What artefacts of one export are made of and run on.

    network: of `subject`, float32, preprocessed; target, settings, spans, calibration: see `Runtime.build`.
    calls: of `measuring.probe_calls`; origin: what they are, in words.
    """

    subject: Subject
    network: Network
    target: str
    settings: BuildSettings
    spans: tuple[Span, ...]
    calibration: list[Tensor] | None
    calls: Sequence[Probe]
    origin: str

    def form(self, quantization: Quantization | None = None) -> Lowered:
        """The form that runs here, as asked for or quantised in another way; errors as `Runtime.build`."""
        settings = self.settings if quantization is None else replace(self.settings, quantization=quantization)
        return build(self.network, self.target, settings, self.spans, self.calibration)

    def evidence(self, built: Built) -> Evidence | None:
        """What running it shows, None where it cannot run here; errors as `measuring.compare_with_source`."""
        if built.run is None:
            return None
        return compare_with_source(
            self.subject,
            built.run,
            self.calls,
            self.settings,
            runtime=built.runtime,
            origin=self.origin,
            observed=built.observed,
        )

    def require(
        self, found: Evidence | None, form: Lowered, what: str, *, dump: Path | None, say: Callable[[str], None]
    ) -> None:
        """Insist that what ran agrees.

        Raises:
            VerificationError: it does not; of int8 the message says what was measured to help.
        """
        if found is None or found.passed:
            return
        if dump is not None:
            found.dump(dump)
        advice = ""
        if self.calibration is not None:
            say("trying what would help")
            advice = ways_out(
                self.settings.quantization,
                self._layers(form, self.calibration),
                self._attempt,
                time.monotonic,
                saturates=saturates_here(self.target),
            ).advice
        found.require(what, advice)

    def _attempt(self, quantization: Quantization) -> Evidence:
        shown = self.form(quantization).shown()
        found = self.evidence(shown)
        if found is None:
            raise VerificationError(f"cannot run here: {shown.not_run}")
        return found

    def _layers(self, form: Lowered, calibration: Sequence[Tensor]) -> Sequence[LayerError]:
        """Layers by error; other quantisers than onnxruntime's take the same ranges, so that its order serves them."""
        if form.quantized is not None:
            return form.quantized.layers
        asked, network = self.settings.quantization, self.network
        model = network if isinstance(network, onnx.ModelProto) else twin(network, calibration[0])
        return quantize_onnx(model, calibration, asked, symmetric=True, int32_bias=True).layers
