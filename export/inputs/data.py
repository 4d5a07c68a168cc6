"""The images an export calibrates on and is compared on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from repconv.errors import SourceError

from ..settings import BuildSettings
from ..subject import Subject, normalization_of
from .images import RANDOM, Images, random_images, read_images


@dataclass(frozen=True)
class Data:
    """The images an export uses.

    calibrate, evaluate: as `read_images` takes them. Without `evaluate`, calibration images that were not calibrated on
    serve, and without any, noise.
    calibration_images, images: at most so many of each.
    random_calibration: calibrate on noise, which makes an int8 file of no use but for timing.
    """

    calibrate: str | None = None
    evaluate: str | None = None
    calibration_images: int = 256
    images: int = 64
    random_calibration: bool = False


@dataclass(frozen=True)
class Read:
    """What was read: images to calibrate on, for int8, and images to compare on, None for noise."""

    calibration: Images | None
    evaluation: Images | None


def check_calibration(settings: BuildSettings, data: Data) -> None:
    """Insist that int8 has images, and no other precision has.

    Raises:
        SourceError: otherwise.
    """
    if settings.precision == "int8" and data.calibrate is None and not data.random_calibration:
        raise SourceError(
            "int8 needs images like those the network will see: --calibrate imagefolder:FOLDER (or .zip, or an .npz "
            "file). For a file that is only timed, --random-calibration takes noise"
        )
    if settings.precision != "int8" and (data.calibrate is not None or data.random_calibration):
        raise SourceError(f"calibration is for int8, not {settings.precision}; --evaluate gives images to compare on")


def read_data(subject: Subject, settings: BuildSettings, data: Data) -> Read:
    """Images to calibrate on, and others to compare on.

    Raises:
        SourceError: no readable images of the network's size.
        BackendError: Pillow is missing.
    """
    norm = normalization_of(subject, settings)
    pixels = settings.preprocessing is not None
    evaluation: Images | None = None
    calibration: Images | None = None
    if data.evaluate is not None:
        evaluation = read_images(
            data.evaluate, subject.size, norm, limit=data.images, class_names=subject.class_names, seed=1
        )
    if data.calibrate is not None:
        limit = data.calibration_images + (0 if evaluation is not None else data.images)
        found = read_images(data.calibrate, subject.size, norm, limit=limit, class_names=subject.class_names)
        held_out = min(data.images, len(found) // 2) if evaluation is None else 0
        calibration = found.part(held_out)
        evaluation = evaluation if evaluation is not None else found.part(0, held_out)
        if not len(evaluation):
            evaluation = found
    elif settings.precision == "int8":
        calibration = random_images(subject.size, norm, data.calibration_images, pixels=pixels, seed=2)
    return Read(calibration, evaluation)


def origin_of(read: Read) -> str:
    """What the artefact is compared on, in words."""
    if read.evaluation is None:
        return RANDOM
    return f"{len(read.evaluation)} images of {read.evaluation.origin}"


def batches(images: Images | None, settings: BuildSettings) -> list[Tensor]:
    """Images in batches as the artefact takes them.

    Raises:
        SourceError: fewer images than one fixed batch.
    """
    if images is None:
        return []
    given, size = images.given_to(settings.preprocessing), settings.batch.usual
    if len(given) < size and not settings.batch.fixed:
        size = len(given)
    found = [given[i : i + size] for i in range(0, len(given) - size + 1, size)]
    if not found:
        raise SourceError(f"{images.origin} holds {len(given)} images to calibrate on, fewer than one batch of {size}")
    return found
