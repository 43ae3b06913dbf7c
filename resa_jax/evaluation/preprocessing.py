"""From a decoded image to what an encoder sees in evaluation."""

from dataclasses import dataclass

from jaxtyping import Array, Float, Int, UInt

from resa_jax.data.augment import center_crop, normalize
from resa_jax.data.view import Interpolation
from resa_jax.image_size import ImageSize
from resa_jax.models.spec import EncoderSpec, usual_resize


@dataclass(frozen=True)
class Preprocessing:
    """From an image of any size to the network's input.

    Attributes:
      size: what the network sees: side of a square, or height and width, pixels.
      resize, interpolation: see `center_crop`; the latter antialiased.
      mean, std: of the channels, in 0..1.
      white: the images' highest value.
    """

    size: ImageSize
    resize: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: int = 255

    @classmethod
    def of(cls, spec: EncoderSpec, interpolation: Interpolation = "bicubic") -> "Preprocessing":
        """The one that an encoder was made for; without a size on record ImageNet's 256 : 224."""
        resize = spec.resize or usual_resize(spec.image_size)
        numbers = tuple(spec.mean), tuple(spec.std)
        return cls(spec.image_size, resize, interpolation, *numbers, spec.decoding.white)

    def __call__(
        self, images: UInt[Array, "n a b c"], sizes: Int[Array, "n 3"]
    ) -> Float[Array, "n h w c"]:
        """Normalised inputs; arguments as `evaluation_batches` gives them."""
        pixels = center_crop(
            images,
            sizes,
            size=self.size,
            resize=self.resize,
            interpolation=self.interpolation,
            white=self.white,
        )
        return normalize(pixels, self.mean, self.std, self.white)
