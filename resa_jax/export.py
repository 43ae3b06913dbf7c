"""An encoder for serving: one StableHLO file with the weights inside, for any batch size.

python -m resa_jax.export --encoder=PATH --output=FILE.stablehlo [--platforms=cpu,cuda,tpu]

The file runs wherever JAX does, without this package:

    from jax import export
    encode = export.deserialize(open("FILE.stablehlo", "rb").read()).call
    encodings = encode(images)  # uint8 [n, height, width, 3] to float32 [n, d]
"""

from absl import flags

from resa_jax.cli import run
from resa_jax.errors import UserError
from resa_jax.image_flags import define_statistics
from resa_jax.paths import as_path
from resa_jax.weights.files import is_tensor_file


_ALL_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

_ENCODER = flags.DEFINE_string(
    "encoder",
    None,
    "A run's workdir, DIR/checkpoints/STEP, an export, or PyTorch weights.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "File to write.", required=True)
_ARCH = flags.DEFINE_string("arch", None, "Architecture of PyTorch weights.")
_NETWORK = flags.DEFINE_enum("network", "ema", ["ema", "online"], "Which network of a checkpoint.")
_PLATFORMS = flags.DEFINE_list("platforms", ["cpu"], "Where the file is to run.")
_statistics = define_statistics()


def main(arguments: list[str]) -> None:
    """Exports, loads back, and says how far the two differ."""
    del arguments
    if not as_path(_ENCODER.value, "--encoder=").exists():
        raise UserError(f"--encoder={_ENCODER.value}: there is no such file or folder.")
    output = as_path(_OUTPUT.value, "--output=")
    if is_tensor_file(output):
        raise UserError(
            f"--output={output}: what is written is StableHLO, as FILE.stablehlo; weights for "
            "PyTorch are written by resa_jax.convert."
        )
    for platform in _PLATFORMS.value:
        if platform not in _ALL_PLATFORMS:
            raise UserError(f"--platforms={platform} must be among {', '.join(_ALL_PLATFORMS)}.")

    import jax

    from resa_jax.encoder import load_encoder
    from resa_jax.serving import check_export, export_stablehlo

    encoder = load_encoder(_ENCODER.value, _ARCH.value, _NETWORK.value, **_statistics())
    serialized = export_stablehlo(encoder, tuple(_PLATFORMS.value))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(serialized)
    print(f"{output} holds {encoder.spec.name} for {', '.join(_PLATFORMS.value)}.")
    if jax.default_backend().replace("gpu", "cuda") in _PLATFORMS.value:
        difference = check_export(encoder, output.read_bytes())
        print(f"Loaded back, it differs from the encoder by at most {difference:.2g}.")


if __name__ == "__main__":
    run(main)
