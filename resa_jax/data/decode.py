"""One encoded image to an upright array, reduced to fit the canvas."""

import contextlib
import ctypes
import functools
import io
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg
from jaxtyping import UInt
from PIL import Image, ImageSequence, UnidentifiedImageError

from resa_jax.data.decoding import Decoding


# Here `Decoding.max_pixels` is the bound.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Corrupt EXIF data")  # then the image is taken as upright

# What Pillow may take a file for, whatever its ending: nothing that starts another program, as
# PostScript does, or that no camera or browser writes.
_FORMATS = (
    *("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA"),
)
_EXIF_ORIENTATION = 0x0112
# EXIF orientation: the axes' order, then the directions of rows and columns, that make it upright.
_UPRIGHT = {
    2: ((0, 1), 1, -1),
    3: ((0, 1), -1, -1),
    4: ((0, 1), -1, 1),
    5: ((1, 0), 1, 1),
    6: ((1, 0), 1, -1),
    7: ((1, 0), -1, -1),
    8: ((1, 0), -1, 1),
}


class BadImageError(Exception):
    """The image cannot be decoded; the message says why."""


def decode_image(data: bytes, how: Decoding) -> UInt[np.ndarray, "h w c"]:
    """Decodes an image to `how.channels` channels of `how.dtype`, reduced as `how.size` has it.

    Larger images are reduced, smaller ones never enlarged: a JPEG first by the decoder's own DCT
    scaling (by 2, 4 or 8, as far as it stays at least as large as the result), then by Pillow's
    antialiased resampling with the Hamming filter, which keeps more detail than the bilinear one.

    Gray, palette, CMYK and transparent images become RGB, or gray, as Pillow's `convert` has it
    (transparency is dropped). Other numbers of channels are those of the file: its bands (2: gray
    and alpha, 4: RGB and alpha, or CMYK), or its pages, each of them gray. Values of more than 8
    bits are scaled by 255 / `how.gray_max` for 8 bits; for 16 they stay, and values of 8 bits are
    scaled up. The EXIF orientation is applied, unless the EXIF data are damaged.
    Of an animation the first frame is taken. The pixels are those of Pillow: its JPEG decoder is
    the same library.

    Raises:
      BadImageError: the data are damaged, cut off, too large, no image with 8 or 16 bits a
        channel, or of another number of channels.
    """
    is_jpeg = data[:2] == b"\xff\xd8"
    plain = how.bits == 8 and how.channels in (1, 3)
    if plain and is_jpeg and (orientation := _jpeg_orientation(data)) is not None:
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


def shrink(pixels: UInt[np.ndarray, "h w c"], how: Decoding) -> UInt[np.ndarray, "h2 w2 c"]:
    """Reduces an image as `decode_image` does, if it is larger than the canvas."""
    return _resize(pixels, how.size(pixels.shape[1], pixels.shape[0]))


def _resize(pixels: UInt[np.ndarray, "h w c"], size: tuple[int, int]) -> np.ndarray:
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.HAMMING))
    # Channel by channel; of 16 bits in floating point, whose rounding is ours.
    planes = pixels.transpose(2, 0, 1)
    if pixels.dtype == np.uint8:
        return np.stack([_resized(np.ascontiguousarray(plane), size) for plane in planes], axis=2)
    resized = np.stack([_resized(plane.astype(np.float32), size) for plane in planes], axis=2)
    return np.clip(np.rint(resized), 0, pixels.max()).astype(np.uint16)


def _resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.HAMMING))


def _decode_plain_jpeg(data: bytes, how: Decoding) -> UInt[np.ndarray, "h w c"] | None:
    """The fast path for gray and colour JPEGs; None leaves the image, or its error, to Pillow."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace in ("CMYK", "YCCK"):
            return None
        _refuse_huge(width, height, how)
        size = how.size(width, height)
        factor = _dct_factor((width, height), size)
        image = simplejpeg.decode_jpeg(
            data,
            colorspace="RGB" if how.channels == 3 else "GRAY",
            min_height=-(-height // factor),
            min_width=-(-width // factor),
        )
    except ValueError:
        return None
    return _resize(image, size)


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


def _turned(pixels: UInt[np.ndarray, "h w c"], orientation: int) -> UInt[np.ndarray, "a b c"]:
    """Upright pixels, as `Image.transpose` makes them."""
    if orientation not in _UPRIGHT:
        return pixels
    axes, rows, columns = _UPRIGHT[orientation]
    return np.ascontiguousarray(pixels.transpose(*axes, 2)[::rows, ::columns])


def _dct_factor(size: tuple[int, int], reduced: tuple[int, int]) -> int:
    """By how much a JPEG is reduced as it is decoded: it stays at least as large as `reduced`."""
    scale = min(side / small for side, small in zip(size, reduced, strict=True))
    return max(factor for factor in (1, 2, 4, 8) if factor <= scale or factor == 1)


def _decode_with_pillow(image: Image.Image, how: Decoding) -> UInt[np.ndarray, "h w c"]:
    _refuse_huge(*image.size, how)
    size = how.size(*image.size)
    if image.format in ("JPEG", "MPO"):
        factor = _dct_factor(image.size, size)
        if factor > 1:
            image.draft(None, (max(image.width // factor, 1), max(image.height // factor, 1)))
    pages = getattr(image, "n_frames", 1)
    if how.channels not in (1, 3) and pages == how.channels:
        planes = [_read(page, how, 1) for page in ImageSequence.Iterator(image)]
        if len({plane.shape for plane in planes}) > 1:
            raise BadImageError("its pages have several sizes")
        pixels = np.concatenate(planes, axis=2)
        image.seek(0)
    else:
        pixels = _read(image, how, how.channels)
    orientation = _upright_if_damaged(image.getexif)  # Pillow itself turns a TIFF on loading
    return _turned(_resize(pixels, size), orientation)


def _read(image: Image.Image, how: Decoding, channels: int) -> UInt[np.ndarray, "h w c"]:
    """One page's pixels, before any reduction."""
    stored = str(
        getattr(image, "tile", "")
    )  # with the mode in the file; reading it leaves nothing there
    image.load()
    if image.mode.startswith("I"):  # gray of more than 8 bits, which Pillow would clip at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError("its values are outside of 16 bits")
        values = np.minimum(values, how.gray_max)
        if how.bits == 8:
            values = (values * 255 + how.gray_max // 2) // how.gray_max
        pixels = values.astype(how.dtype)[..., None]
        if channels not in (1, 3):
            raise _other_channels(image, how)
        return np.repeat(pixels, channels, axis=2)
    if image.mode == "F":
        raise BadImageError("floating-point images have no fixed range")
    if how.bits == 16 and ";16" in stored:
        raise BadImageError("colour of 16 bits a channel is read from npz files alone")
    if channels in (1, 3):
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns about the direct way
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    else:
        pixels = np.asarray(image)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] != channels or pixels.dtype != np.uint8:
        raise _other_channels(image, how)
    if how.bits == 8:
        return pixels
    return ((pixels.astype(np.int64) * how.gray_max + 127) // 255).astype(np.uint16)


def _other_channels(image: Image.Image, how: Decoding) -> BadImageError:
    pages = getattr(image, "n_frames", 1)
    return BadImageError(
        f"it has {len(image.getbands())} channels and {pages} pages, neither of which is "
        f"data.channels={how.channels}"
    )
