"""One encoded image to upright 8-bit RGB, reduced to fit the canvas."""

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image


# What can turn a JPEG: Pillow reads the orientation from EXIF and, failing that, from XMP.
_ORIENTATION_MARKS = (b"Exif\x00", b"tiff:Orientation")
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


def decode_image(data: bytes, canvas: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image so that neither side is longer than `canvas`.

    Larger images are reduced, smaller ones never enlarged: a JPEG first by the decoder's own DCT
    scaling (by 2, 4 or 8, as far as it stays at least as large as the result), then by Pillow's
    antialiased resampling with the Hamming filter, which keeps more detail than the bilinear one.

    Gray, palette, CMYK and transparent images become RGB as Pillow's `convert` has it (transparency
    is dropped); 16-bit gray is divided by 257. The EXIF orientation is applied. Of an animation the
    first frame is taken. The pixels are those of Pillow: its JPEG decoder is the same library.

    Raises:
      BadImageError: the data are damaged, cut off, or no image with 8 or 16 bits a channel.
    """
    if data[:2] == b"\xff\xd8" and not any(mark in data for mark in _ORIENTATION_MARKS):
        image = _decode_plain_jpeg(data, canvas)
        if image is not None:
            return image
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return _decode_with_pillow(picture, canvas)
    except (BadImageError, MemoryError):
        raise
    except Exception as error:  # damaged files make Pillow's plugins raise almost anything
        raise BadImageError(str(error) or type(error).__name__) from error


def image_size(path: str) -> tuple[int, int]:
    """Width and height from the file's header, before any rotation.

    Raises:
      BadImageError: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # as in `decode_image`
        raise BadImageError(str(error) or type(error).__name__) from error


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


def _decode_plain_jpeg(data: bytes, canvas: int) -> UInt8[np.ndarray, "h w 3"] | None:
    """The fast path for gray and colour JPEGs; None leaves the image, or its error, to Pillow."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace in ("CMYK", "YCCK"):
            return None
        factor = _dct_factor(max(height, width), canvas)
        image = simplejpeg.decode_jpeg(
            data, min_height=-(-height // factor), min_width=-(-width // factor)
        )
    except ValueError:
        return None
    return _resize(image, _fitting_size(width, height, canvas))


def _dct_factor(long_side: int, canvas: int) -> int:
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or long_side >= factor * canvas)


def _decode_with_pillow(image: Image.Image, canvas: int) -> UInt8[np.ndarray, "h w 3"]:
    size = _fitting_size(*image.size, canvas)
    if image.format in ("JPEG", "MPO"):
        factor = _dct_factor(max(image.size), canvas)
        if factor > 1:
            image.draft(None, (max(image.width // factor, 1), max(image.height // factor, 1)))
    image.load()
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)  # Pillow itself turns a TIFF on loading
    pixels = _resize(np.asarray(_to_rgb(image)), size)
    if orientation in _UPRIGHT:
        return np.asarray(Image.fromarray(pixels).transpose(_UPRIGHT[orientation]))
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError("its values are outside of 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise BadImageError("floating-point images have no fixed range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image.convert("RGB")
