"""Pictures: folders of image files, decoded, resized, cropped and normalised into what the model takes.

Pillow does the decoding; it is an extra (`pip install onnxprune[images]`) and is loaded when the first picture is.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from onnxprune.calibration.arrays import beginning, shown_path
from onnxprune.calibration.batches import Block
from onnxprune.calibration.columns import CachedRows
from onnxprune.calibration.layout import Layout
from onnxprune.errors import DataError, ProviderError, UsageError, quote
from onnxprune.graph.inputs import InputSpec

__all__ = ["SUFFIXES", "Geometry", "PictureOptions", "finish", "from_pictures", "geometry", "picture_files"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # none that runs another program
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MAX_PIXELS = 1 << 28
_MAX_FILES = 2_000_000

PictureLayout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class PictureOptions:
    """How pixels become an input: (pixel - mean) / std.

    Attributes:
        mean: one number, or one per channel. If mean or std has a number above 1, both are meant for pixels of 0 to
            255, else for 0 to 1. None is 0.
        std: likewise; None is 1.
        size: height and width, where the model leaves them open.
        layout: `nchw` or `nhwc`, where the model's declaration does not tell.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    layout: PictureLayout | None = None


@dataclass(frozen=True)
class Geometry:
    """What a picture is like when it is fed.

    Attributes:
        height: in pixels.
        width: in pixels.
        channels: 1, 3 or 4.
        last: True if the channels are the last axis.
    """

    height: int
    width: int
    channels: int
    last: bool

    @property
    def raw(self) -> tuple[int, int, int]:
        """Shape of a decoded picture: height, width, channels."""
        return (self.height, self.width, self.channels)

    @property
    def sample(self) -> tuple[int, int, int]:
        """Shape of a fed picture, without its batch axis."""
        return self.raw if self.last else (self.channels, self.height, self.width)


def geometry(spec: InputSpec, options: PictureOptions) -> Geometry:
    """Return what pictures an input takes.

    Raises:
        DataError: it takes none.
        UsageError: an option is missing, or contradicts what the model declares.
    """
    name = quote(spec.name)
    if len(spec.shape) != 4 or (spec.dtype.kind not in "fV" and spec.dtype != np.uint8):
        raise DataError(
            f"input {name} takes {spec.dtype} of {len(spec.shape)} dimensions, no pictures: give arrays (.npz) instead"
        )
    axes: dict[PictureLayout, int] = {"nchw": 1, "nhwc": 3}
    fitting = [k for k, axis in axes.items() if options.layout in (k, None) and _channels(spec.shape[axis])]
    sure = [k for k in fitting if isinstance(spec.shape[axes[k]], int)]
    if not fitting:
        raise DataError(f"input {name} has no axis of 1, 3 or 4 channels: check the layout, or give arrays (.npz)")
    if len(sure) != 1 and options.layout is None:
        raise UsageError(f"input {name} does not tell where its channels are: give --layout nchw or nhwc")
    layout = sure[0] if len(sure) == 1 else fitting[0]
    channels, last = spec.shape[axes[layout]], layout == "nhwc"
    size: list[int] = []
    for k, d in enumerate(spec.shape[1:3] if last else spec.shape[2:]):
        asked = options.size[k] if options.size is not None else d
        if not isinstance(asked, int):
            raise UsageError(f"input {name} leaves the size of pictures open: give --image-size")
        if (isinstance(d, int) and asked != d) or asked < 1:
            raise UsageError(f"input {name} takes pictures of another size than --image-size: leave the option out")
        size.append(asked)
    if size[0] * size[1] > _MAX_PIXELS:
        raise UsageError(f"pictures of {size[0]} x {size[1]} are too large: give a smaller --image-size")
    return Geometry(size[0], size[1], channels if isinstance(channels, int) else 3, last)


def _channels(d: int | str | None) -> bool:
    return not isinstance(d, int) or d in _MODES


def finish(raw: np.ndarray, spec: InputSpec, options: PictureOptions, last: bool) -> np.ndarray:
    """Return decoded pixels (samples, height, width, channels; 0 to 255) as the model takes them."""
    out: np.ndarray
    if spec.dtype == np.uint8:
        out = raw
    else:
        mean, std = scale(options, raw.shape[-1])
        out = (raw - mean) / std
    if not last:
        out = np.moveaxis(out, -1, 1)
    return np.ascontiguousarray(out).astype(spec.dtype, copy=False)


def scale(options: PictureOptions, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation per channel, for pixels of 0 to 255.

    Raises:
        UsageError: too many or too few numbers, or a deviation that nothing can be divided by.
    """
    mean, std = options.mean or (0.0,), options.std or (1.0,)
    for word, numbers in (("--mean", mean), ("--std", std)):
        if len(numbers) not in (1, channels) or not all(map(np.isfinite, numbers)):
            raise UsageError(f"{word} has {len(numbers)} numbers, and pictures have {channels} channels: give as many")
    if min(std) <= 0:
        raise UsageError("--std holds a number that is not above 0: give the standard deviation of every channel")
    factor = 1.0 if max(*mean, *std) > 1 else 255.0
    return np.asarray(mean, np.float32) * np.float32(factor), np.asarray(std, np.float32) * np.float32(factor)


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures in a folder and the folders below it, by name.

    Raises:
        DataError: there are millions.
    """
    found: list[Path] = []
    for here, below, files in os.walk(folder):
        below[:] = sorted(d for d in below if not d.startswith((".", "__MACOSX")))
        found += [Path(here, f) for f in sorted(files) if not f.startswith(".") and Path(f).suffix.lower() in SUFFIXES]
        if len(found) > _MAX_FILES:
            raise DataError(f"{shown_path(folder)} holds more than {_MAX_FILES:,} pictures: give a folder with fewer")
    return found


def from_pictures(
    files: Sequence[Path], specs: Sequence[InputSpec], layout: Layout, options: PictureOptions, where: str
) -> tuple[Block, tuple[str, ...]]:
    """Return pictures as a block, decoded when they are read, and what the user should know.

    Raises:
        ProviderError: Pillow is not installed.
        DataError, UsageError: the model takes no pictures, or not these.
    """
    if len(specs) != 1:
        raise DataError(
            f"{where} holds pictures, and the model has {len(specs)} inputs: give arrays (.npz) for all of them"
        )
    spec = specs[0]
    shape = geometry(spec, options)
    pillow()
    warned: tuple[str, ...] = ()
    if spec.dtype == np.uint8:
        if options.mean or options.std:
            raise UsageError(f"input {quote(spec.name)} takes bytes: leave --mean and --std out")
    else:
        scale(options, shape.channels)
        if options.mean is None and options.std is None:
            warned = ("pictures are scaled to 0..1, as no --mean and --std are given: check that the model wants that",)
    column = CachedRows(
        (len(files), *shape.sample),
        spec.dtype,
        functools.partial(_decode_file, files, shape),
        functools.partial(_finish, spec, options, shape.last),
        shape.raw,
    )
    axis = layout.axes[spec.name]
    if axis != 0:
        raise DataError(f"input {quote(spec.name)} has no batch axis in front: give arrays (.npz) instead of pictures")
    block = Block(len(files), {spec.name: column}, {}, {}, where)
    return block, warned


def _finish(spec: InputSpec, options: PictureOptions, last: bool, raw: np.ndarray) -> np.ndarray:
    return finish(raw, spec, options, last)


def _decode_file(files: Sequence[Path], shape: Geometry, row: int) -> np.ndarray:
    return decode(files[row], shape)


def decode(path: Path, shape: Geometry) -> np.ndarray:
    """Return a picture as bytes of (height, width, channels): its shorter side resized, then the middle cut out.

    Raises:
        DataError: it is damaged, or too large to be unpacked.
    """
    image_module, ops = pillow(), _pillow_ops()
    where = f"picture {shown_path(path)}"
    try:
        beginning(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; the size is looked at below
            with image_module.open(path, formats=_formats()) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise DataError(f"{where} has {image.width} x {image.height} pixels: make it smaller")
                longer = max(shape.height, shape.width)
                image.draft("RGB", (longer, longer))  # lets JPEG skip what would be thrown away
                upright = ops.exif_transpose(_eight_bits(image, image_module))
                return _fitted(upright.convert(_MODES[shape.channels]), shape, image_module)
    except (DataError, UsageError) as error:
        raise DataError(str(error)) from None
    except Exception as error:  # every format's reader raises its own
        reason = (str(error).splitlines() or [""])[0][:200]
        raise DataError(f"{where} cannot be decoded ({reason}): leave it out") from None


def _eight_bits(image: Any, image_module: ModuleType) -> Any:
    """Return an image of 16 bits per pixel, which Pillow would clip, with its upper eight."""
    if not image.mode.startswith("I"):
        return image
    return image_module.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def _fitted(image: Any, shape: Geometry, image_module: ModuleType) -> np.ndarray:
    ratio = max(shape.height / image.height, shape.width / image.width)
    width = max(shape.width, round(image.width * ratio))
    height = max(shape.height, round(image.height * ratio))
    # Only the middle is resized: a picture of 1 x 100,000 pixels would grow beyond memory.
    cut_w, cut_h = image.width * shape.width / width, image.height * shape.height / height
    left, top = (image.width - cut_w) / 2, (image.height - cut_h) / 2
    box = (left, top, min(left + cut_w, image.width), min(top + cut_h, image.height))
    small = image.resize((shape.width, shape.height), image_module.Resampling.BILINEAR, box=box)
    return np.asarray(small, np.uint8).reshape(shape.raw)


@functools.cache
def pillow() -> ModuleType:
    """Return Pillow's `Image`.

    Raises:
        ProviderError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ProviderError(
            "pictures need Pillow, which is not installed: pip install 'onnxprune[images]', or give arrays (.npz)"
        ) from None
    return Image


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this build of Pillow can read, of those that are let in."""
    image_module = pillow()
    image_module.init()
    return tuple(f for f in _FORMATS if f in image_module.OPEN)


def _pillow_ops() -> ModuleType:
    from PIL import ImageOps

    return ImageOps
