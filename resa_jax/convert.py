"""PyTorch weights in and out.

python -m resa_jax.convert --input=PATH --output=PATH [--arch=NAME] [--network=ema|online]
    [--layout=timm|transformers]

In: a .safetensors, .pth, .pt, .pth.tar or detectron2 .pkl file with a ResNet (torchvision's names),
a ViT (timm's names) or a checkpoint of the authors' code, to a folder that evaluate, embed and
load_encoder read. From a full checkpoint the folder also holds the projector, the predictor and
both networks, so that `--config.init_from=FOLDER` goes on from there, unless --network picks one
encoder.
Out: a run's workdir, its checkpoints/STEP, its encoder folder or another weights file, to a file;
its ending picks the format: .safetensors, .pth or .pt (torchvision's or timm's names), or .pkl for
detectron2 (ResNet-50).
With --layout a folder that timm (`timm.create_model("local-dir:FOLDER", pretrained=True)`) or
transformers (`AutoModel.from_pretrained("FOLDER")`) loads by itself, with a model card.
Files other than .pth and .pt are read and written without PyTorch.
"""

from absl import flags

from resa_jax.cli import run
from resa_jax.errors import UserError
from resa_jax.image_flags import define_statistics
from resa_jax.paths import AnyPath, as_path, local_output


_INPUT = flags.DEFINE_string("input", None, "Weights to read: a file, or a folder.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "File or folder to write.", required=True)
_ARCH = flags.DEFINE_string("arch", None, "Architecture, where the shapes leave it open.")
_NETWORK = flags.DEFINE_enum("network", None, ["ema", "online"], "Which network; default ema.")
_LAYOUT = flags.DEFINE_enum(
    "layout", None, ["timm", "transformers"], "Write a folder that this library loads."
)
_statistics = define_statistics()


def main(arguments: list[str]) -> None:
    """Converts, and prints what became of every tensor."""
    del arguments
    source, output = as_path(_INPUT.value, "--input="), as_path(_OUTPUT.value, "--output=")
    if not source.exists():
        raise UserError(f"--input={_INPUT.value}: there is no such file or folder.")
    from resa_jax.weights.conversion import convert

    with local_output(output) as local:
        options = _statistics() | {"layout": _LAYOUT.value, "run": _run_of(source)}
        for line in convert(source, local, _ARCH.value, _NETWORK.value, **options):
            print(line.replace(str(local), str(output)), flush=True)


def _run_of(source: AnyPath):
    """What the card says of the run that the weights come from, None where there is none."""
    if _LAYOUT.value is None or source.is_file():
        return None
    from resa_jax.report.run_record import read_run
    from resa_jax.weights.publish import RunFacts

    for folder in (source, source.parent, source.parent.parent):
        if (folder / "config.json").is_file() and (folder / "metrics.jsonl").is_file():
            record = read_run(folder)
            return RunFacts(record.config, record.evaluations)
    return None


if __name__ == "__main__":
    run(main)
