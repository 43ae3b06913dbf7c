"""One encoded image to upright 8-bit RGB, reduced to fit the canvas."""

import contextlib
import ctypes
import functools
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError


# Here `Decoding.max_pixels` is the bound.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Corrupt EXIF data")  # then the image is taken as upright

# What Pillow may take a file for, whatever its ending: nothing that starts another program, as
# PostScript does, or that no camera or browser writes.
_FORMATS = (
    *("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA"),
)
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImageError(Exception):
    """The image cannot be decoded; the message says why."""


@dataclass(frozen=True)
class Decoding:
    """How files become pixels; the fields of `config.data` with the same names.

    Attributes:
      canvas: no side is longer, pixels.
      max_pixels: an image with more is refused before it is decoded.
      gray_max: the value of white in gray images of more than 8 bits; higher ones are white too.
    """

    canvas: int = 512
    max_pixels: int = 89_478_485  # where Pillow begins to warn
    gray_max: int = 65_535


def decode_image(data: bytes, how: Decoding) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image so that neither side is longer than `how.canvas`.

    Larger images are reduced, smaller ones never enlarged: a JPEG first by the decoder's own DCT
    scaling (by 2, 4 or 8, as far as it stays at least as large as the result), then by Pillow's
    antialiased resampling with the Hamming filter, which keeps more detail than the bilinear one.

    Gray, palette, CMYK and transparent images become RGB as Pillow's `convert` has it (transparency
    is dropped); gray of 16 bits is scaled by 255 / `how.gray_max`. The EXIF orientation is applied,
    unless the EXIF data are damaged.
    Of an animation the first frame is taken. The pixels are those of Pillow: its JPEG decoder is
    the same library.

    Raises:
      BadImageError: the data are damaged, cut off, too large, or no image with 8 or 16 bits a
        channel.
    """
    is_jpeg = data[:2] == b"\xff\xd8"
    if is_jpeg and (orientation := _jpeg_orientation(data)) is not None:
        image = _decode_plain_jpeg(data, how)
        if image is not None:
            return _turned(image, orientation)
    try:
        with _open(io.BytesIO(data)) as picture:
            return _decode_with_pillow(picture, how)
    except (BadImageError, MemoryError):
        raise
    except Exception as error:  # damaged files make Pillow's plugins raise almost anything
        raise BadImageError(_reason(error)) from error


def image_size(file: str | io.BytesIO) -> tuple[int, int]:
    """Width and height from the file's header, before any rotation.

    Raises:
      BadImageError: the header cannot be read.
    """
    try:
        with _open(file) as image:
            return image.size
    except Exception as error:  # as in `decode_image`
        raise BadImageError(_reason(error)) from error


def gray_peak(path: str) -> int | None:
    """The highest value of a gray image of more than 8 bits; None for all others."""
    try:
        with _open(path) as image:
            return int(np.asarray(image).max()) if image.mode.startswith("I") else None
    except Exception:  # as in `decode_image`, which says so when the image's turn comes
        return None


def _open(file: str | io.BytesIO) -> Image.Image:
    return Image.open(file, formats=_known_formats())


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    _quiet_libtiff()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _quiet_libtiff() -> None:
    """Keeps libtiff from writing to stderr itself, lines that name no file."""
    library = ctypes.CDLL(Image.core.__file__)
    for name in ("TIFFSetWarningHandler", "TIFFSetErrorHandler"):
        with contextlib.suppress(AttributeError):  # a Pillow that was built without it
            getattr(library, name)(None)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose text has an object's address
        return "it is no image of a format that is read here"
    if isinstance(error, Image.DecompressionBombError):
        return "it has more pixels than data.max_pixels may allow"
    if str(error).startswith("decoder error"):  # a number of libtiff's or OpenJPEG's
        return "its compressed data are damaged"
    return str(error) or type(error).__name__


def _refuse_huge(width: int, height: int, how: Decoding) -> None:
    if width * height > how.max_pixels:
        raise BadImageError(
            f"it has {width} x {height} pixels, more than data.max_pixels={how.max_pixels}"
        )


def shrink(image: UInt8[np.ndarray, "h w 3"], canvas: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Reduces an image so that its longer side is `canvas`, if it is longer than that."""
    height, width = image.shape[:2]
    return _resize(image, _fitting_size(width, height, canvas))


def _fitting_size(width: int, height: int, canvas: int) -> tuple[int, int]:
    scale = min(1, canvas / max(width, height))
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _resize(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> np.ndarray:
    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.HAMMING))


def _decode_plain_jpeg(data: bytes, how: Decoding) -> UInt8[np.ndarray, "h w 3"] | None:
    """The fast path for gray and colour JPEGs; None leaves the image, or its error, to Pillow."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace in ("CMYK", "YCCK"):
            return None
        _refuse_huge(width, height, how)
        factor = _dct_factor(max(height, width), how.canvas)
        image = simplejpeg.decode_jpeg(
            data, min_height=-(-height // factor), min_width=-(-width // factor)
        )
    except ValueError:
        return None
    return _resize(image, _fitting_size(width, height, how.canvas))


def _jpeg_orientation(data: bytes) -> int | None:
    """The EXIF orientation, from the segments before the image; None leaves it to Pillow.

    1 where there is none. XMP, which Pillow asks failing EXIF, is left to Pillow.
    """
    start, exif = 2, b""
    while data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] != b"\xda":
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        if data[start + 1] == 0xE1:  # APP1
            segment = data[start + 4 : start + 2 + length]
            if segment.startswith(b"Exif\x00\x00"):
                exif = exif or segment
            elif b"tiff:Orientation" in segment:
                return None
        start += 2 + length
    return _orientation_of(exif) if exif else 1


@functools.lru_cache(64)
def _orientation_of(exif: bytes) -> int:
    def read():
        tags = Image.Exif()
        tags.load(exif)
        return tags

    return _upright_if_damaged(read)


def _upright_if_damaged(read: Callable[[], Image.Exif]) -> int:
    try:
        return read().get(_EXIF_ORIENTATION, 1)
    except Exception:  # almost anything; the pixels are whole
        return 1


def _turned(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "a b 3"]:
    if orientation not in _UPRIGHT:
        return pixels
    return np.asarray(Image.fromarray(pixels).transpose(_UPRIGHT[orientation]))


def _dct_factor(long_side: int, canvas: int) -> int:
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or long_side >= factor * canvas)


def _decode_with_pillow(image: Image.Image, how: Decoding) -> UInt8[np.ndarray, "h w 3"]:
    _refuse_huge(*image.size, how)
    size = _fitting_size(*image.size, how.canvas)
    if image.format in ("JPEG", "MPO"):
        factor = _dct_factor(max(image.size), how.canvas)
        if factor > 1:
            image.draft(None, (max(image.width // factor, 1), max(image.height // factor, 1)))
    image.load()
    orientation = _upright_if_damaged(image.getexif)  # Pillow itself turns a TIFF on loading
    return _turned(_resize(np.asarray(_to_rgb(image, how.gray_max)), size), orientation)


def _to_rgb(image: Image.Image, gray_max: int) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError("its values are outside of 16 bits")
        levels = (np.minimum(values, gray_max) * 255 + gray_max // 2) // gray_max
        image = Image.fromarray(levels.astype(np.uint8))
    elif image.mode == "F":
        raise BadImageError("floating-point images have no fixed range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image.convert("RGB")
