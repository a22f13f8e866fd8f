"""A DICOM image as a PNG, for people to look at; never for reading."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

_SIDE = 640
Pixels = npt.NDArray[np.float64] | npt.NDArray[np.uint8]


class NotAPicture(ValueError):
    """The object has no pixels that can be shown: show words instead."""


def png(dataset: Dataset, side: int = _SIDE) -> bytes:
    """The image, or the middle frame of many, at most `side` pixels wide and high.

    Raises:
        NotAPicture: it has no pixel data, or no decoder here knows its encoding.
    """
    if "PixelData" not in dataset or "Rows" not in dataset:
        raise NotAPicture("no pixel data")
    try:
        image = _image(dataset, side)
    except (ValueError, RuntimeError, AttributeError, NotImplementedError, KeyError, TypeError, IndexError) as error:
        raise NotAPicture(f"not decodable here ({type(error).__name__})") from error
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def data_uri(content: bytes) -> str:
    """PNG bytes as a URI, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _image(dataset: Dataset, side: int) -> Image.Image:
    frames = int(dataset.get("NumberOfFrames") or 1)
    pixels = pixel_array(dataset, index=frames // 2 if frames > 1 else None)
    step = max(1, min(pixels.shape[:2]) // (2 * side))  # twice as fine as shown is enough to be smoothed
    pixels = pixels[::step, ::step]
    kind = str(dataset.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        return Image.fromarray(_eight_bits(apply_color_lut(pixels, dataset)), "RGB")
    if pixels.ndim == 3:
        return Image.fromarray(_eight_bits(pixels), "RGB")
    grey = _windowed(pixels, dataset)
    if kind == "MONOCHROME1":
        grey = 255 - grey
    return Image.fromarray(grey, "L")


def _windowed(pixels: npt.NDArray[np.generic], dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Grey levels by the image's own window (PS3.3 C.11.2), or between its 1st and 99th percentile."""
    has_window = "WindowCenter" in dataset or "VOILUTSequence" in dataset
    uid = UID(str(dataset.get("SOPClassUID", "")))
    values = np.asarray(apply_modality_lut(pixels, dataset), dtype=np.float64)
    if has_window and "PositronEmission" not in uid.keyword:
        shown = np.asarray(apply_voi_lut(values if "VOILUTSequence" not in dataset else pixels, dataset), dtype=np.float64)
        if np.ptp(shown) > 0:
            return _stretch(shown, float(shown.min()), float(shown.max()))
    low, high = np.percentile(values, [1, 99.5])
    return _stretch(values, float(low), float(high))


def _stretch(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.uint8]:
    return (np.clip((values - low) / ((high - low) or 1.0), 0, 1) * 255).astype(np.uint8)


def _eight_bits(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    values = np.asarray(pixels)
    return values.astype(np.uint8) if values.dtype.itemsize == 1 else (values.astype(np.float64) / 257).astype(np.uint8)
