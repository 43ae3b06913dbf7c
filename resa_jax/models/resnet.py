"""ResNets v1.5 (He et al., 2016; stride in the 3x3 convolution), NHWC, by torchvision's names."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from resa_jax.models.convolution import convolution
from resa_jax.models.layers import (
    CONVOLUTIONS,
    BatchNorm,
    call_block,
    kaiming_fan_out,
    torch_uniform,
)


def conv(
    in_features: int,
    features: int,
    size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    kernel_init=kaiming_fan_out,
    dtype=None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution without bias, zero-padded by `padding` (size // 2 if None) all around.

    Explicit padding, since "SAME" pads a strided convolution less above and left than PyTorch
    does.
    """
    pad = size // 2 if padding is None else padding
    return nnx.Conv(
        in_features,
        features,
        (size, size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=kernel_init,
        dtype=dtype,
        precision=CONVOLUTIONS,
        conv_general_dilated=convolution,
        rngs=rngs,
    )


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and 34)."""

    expansion = 1
    downsample_conv: nnx.Conv | None
    downsample_bn: BatchNorm | None

    def __init__(self, in_features: int, width: int, stride: int, *, zero_init: bool, dtype, rngs):
        self.conv1 = conv(in_features, width, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, dtype=dtype)
        self.conv2 = conv(width, width, 3, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(width, zero_scale=zero_init, dtype=dtype)
        add_downsample(self, in_features, width, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h2 w2 c2"]:
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        return nnx.relu(y + shortcut(self, x, train=train))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut (ResNet-50 and 101)."""

    expansion = 4
    downsample_conv: nnx.Conv | None
    downsample_bn: BatchNorm | None

    def __init__(self, in_features: int, width: int, stride: int, *, zero_init: bool, dtype, rngs):
        features = width * self.expansion
        self.conv1 = conv(in_features, width, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, dtype=dtype)
        self.conv2 = conv(width, width, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(width, dtype=dtype)
        self.conv3 = conv(width, features, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(features, zero_scale=zero_init, dtype=dtype)
        add_downsample(self, in_features, features, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h2 w2 c2"]:
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = nnx.relu(self.bn2(self.conv2(y), train=train))
        y = self.bn3(self.conv3(y), train=train)
        return nnx.relu(y + shortcut(self, x, train=train))


def add_downsample(
    block: "BasicBlock | Bottleneck", in_features: int, features: int, stride: int, *, dtype, rngs
):
    """Gives the block a projection shortcut where its input and output differ in shape."""
    projects = stride != 1 or in_features != features
    block.downsample_conv = (
        conv(in_features, features, 1, stride=stride, dtype=dtype, rngs=rngs) if projects else None
    )
    block.downsample_bn = BatchNorm(features, dtype=dtype) if projects else None


def shortcut(
    block: "BasicBlock | Bottleneck", x: Float[Array, "n h w c"], *, train: bool
) -> Float[Array, "n h2 w2 c2"]:
    """A block's input, projected where its output has another shape."""
    if block.downsample_conv is None or block.downsample_bn is None:
        return x
    return block.downsample_bn(block.downsample_conv(x), train=train)


# name: block, blocks in each stage
RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nnx.Module):
    """A ResNet without its classifier: images to the averages of the last feature map.

    stem "imagenet": 7x7 convolution of stride 2, then a 3x3 max-pool of stride 2.
    stem "cifar": the authors' one for CIFAR (winci-ai/resa_cifar, src/model.py): a 3x3
        convolution with padding 1 after a zero padding of 1 that the 7x7 stem leaves behind, so
        that 32 px give maps of 34, 34, 17, 9 and 5.
    stem "small": a 3x3 convolution with padding 1: 32 px give maps of 32, 32, 16, 8 and 4.

    The 3x3 stems have no max-pool and start from PyTorch's default, since there the convolution is
    replaced after the network's own initialisation. zero_init starts the last scale of every block
    at zero.
    """

    family = "convnet"

    def __init__(
        self,
        name: str,
        *,
        stem: str,
        zero_init: bool,
        channels: int = 3,
        width: int = 64,
        dtype=None,
        remat=False,
        rngs,
    ):
        block, self.stages = RESNETS[name]
        self.stem = stem
        self.remat = remat
        self.dtype = dtype
        if stem == "imagenet":
            self.conv1 = conv(channels, width, 7, stride=2, dtype=dtype, rngs=rngs)
        else:
            padding = 2 if stem == "cifar" else 1
            self.conv1 = conv(
                channels,
                width,
                3,
                padding=padding,
                kernel_init=torch_uniform,
                dtype=dtype,
                rngs=rngs,
            )
        self.bn1 = BatchNorm(width, dtype=dtype)
        features = width
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                child = block(
                    features,
                    width * 2**stage,
                    stride,
                    zero_init=zero_init,
                    dtype=dtype,
                    rngs=rngs,
                )
                setattr(self, f"layer{stage + 1}_{index}", child)
                features = width * 2**stage * block.expansion
        self.num_features = features

    def feature_maps(
        self, x: Float[Array, "n h w c"], *, train: bool
    ) -> tuple[Float[Array, "n _ _ _"], ...]:
        """The stem's output (before any max-pool) and that of each of the four stages."""
        x = nnx.relu(self.bn1(self.conv1(x), train=train))
        maps = [x]
        if self.stem == "imagenet":
            # Flax pads a max-pool with -inf, as PyTorch does.
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                block = getattr(self, f"layer{stage + 1}_{index}")
                x = call_block(block, x, train=train, remat=self.remat)
            maps.append(x)
        return tuple(maps)

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n d"]:
        # The CPU compiler of jaxlib 0.12 would fuse the last blocks into this mean, and gives NaN
        # in bfloat16.
        return jax.lax.optimization_barrier(self.feature_maps(x, train=train)[-1]).mean((1, 2))

    def linear_features(self, x: Float[Array, "n h w c"], blocks: int) -> Float[Array, "n d"]:
        """What a linear evaluation reads, in evaluation mode: the encoding, whatever `blocks`."""
        return self(x, train=False)

    def linear_settings(self, batch_size: int | None) -> tuple[float, int]:
        """Learning rate per 256 images and blocks to read of the linear evaluation (Table 9).

        Args:
          batch_size: of pre-training; the rate is 40 after 1024 images, 5 after 128 (ImageNet-100),
            10 after 256 or an unknown number.
        """
        size = batch_size or 256
        return (40.0 if size >= 1024 else 5.0 if size <= 128 else 10.0), 0
