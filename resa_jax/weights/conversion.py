"""Weights from one format into another: a run, an encoder's export, PyTorch's files."""

import dataclasses
import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from resa_jax.errors import UserError
from resa_jax.paths import AnyPath, local_input
from resa_jax.weights.check import compare_encodings
from resa_jax.weights.export import export_encoder, is_export
from resa_jax.weights.files import SUFFIXES, is_tensor_file, read_tensors, write_tensors
from resa_jax.weights.networks import save_networks
from resa_jax.weights.publish import RunFacts, card_facts, write_release
from resa_jax.weights.reading import read_encoder
from resa_jax.weights.sorting import sort_networks
from resa_jax.weights.translate import (
    encoder_from_torch,
    encoder_to_torch,
    networks_from_torch,
)


def convert(
    source: AnyPath,
    output: AnyPath,
    arch: str | None = None,
    network: str | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: str | None = None,
    run: RunFacts | None = None,
) -> list[str]:
    """Converts weights; the output is written whole or not at all.

    Args:
      source, output: as `resa_jax.convert` describes them.
      arch: name of the architecture, where PyTorch's shapes leave it open.
      network: "ema" or "online"; None is "ema", and everything of a full checkpoint.
      mean, std: as in `resa_jax.load_encoder`; the output says them.
      layout: "timm" or "transformers" for a folder that these load; None for one of our own.
      run: what the model card of such a folder says of the run that the encoder comes from.

    Returns:
      Lines that say what was loaded, converted and left out, and how far encodings of a fixed
      input are from PyTorch's (where it is installed) and from those of the output read back.

    Raises:
      UserError: for weights that do not fit an architecture exactly, and outputs that cannot be
        written; an existing output is untouched then.
    """
    to_file = _check_output(output, layout)
    told, whole = None not in (mean, std), not to_file and layout is None and network is None
    encoder, tensors, networks, lines = _read(source, arch, network, told=told, whole=whole)
    encoder = (encoder[0].normalized(mean, std), *encoder[1:])
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if to_file:
            kind = "detectron2" if output.suffix == ".pkl" else "torch"
            converted = encoder_to_torch(*encoder, layout=kind)
            write_tensors(output, converted, dataclasses.asdict(encoder[0]))
            what = f"{len(converted)} tensors"
        elif layout is not None:
            facts = card_facts(encoder[0], str(source), run)
            if layout == "transformers" and not isinstance(encoder[0].image_size, int):
                lines.append(
                    "images: the folder's processor stretches them to the encoder's shape, which "
                    "here is cut from them; cut those of another shape yourself"
                )
            write_release(output, layout, encoder[0], encoder_to_torch(*encoder), facts)
            what = f"the encoder in {layout}'s layout"
        else:
            _write_folder(output, encoder, networks, source)
            what = "all networks" if networks else "the encoder"
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error}.") from error
    lines.append(f"written: {what} to {output}")
    # The name, since detectron2's file does not carry it and a 3x3 stem is not told from its shape.
    written = read_encoder(output, arch=encoder[0].name, told=True)
    return lines + compare_encodings(encoder, written, tensors)


def _read(source: AnyPath, arch: str | None, network: str | None, *, told: bool, whole: bool):
    """The encoder, its tensors by PyTorch's names, lines that say what became of the content.

    In between stand the trees of all networks, where they are wanted (`whole`) and there.
    """
    if not source.is_file():
        encoder = read_encoder(source, arch, network or "ema", told=told)
        if arch not in (None, encoder[0].name):
            raise UserError(f"--arch={arch}: {source} holds a {encoder[0].name}.")
        lines = [f"architecture: {encoder[0].name}", f"loaded: the encoder of {source}"]
        return encoder, encoder_to_torch(*encoder), None, lines
    with local_input(source) as file:
        checkpoint = sort_networks(read_tensors(file))
    networks = networks_from_torch(checkpoint, arch) if whole and checkpoint.is_full else None
    encoder, tensors, lines = encoder_from_torch(checkpoint, arch, network or "ema")
    if networks is not None:
        lines = networks.lines
    if checkpoint.file.spec is None and not told:
        numbers = (",".join(map(str, x)) for x in (encoder[0].mean, encoder[0].std))
        lines.append("assumed, unless --mean and --std say more: mean {}, std {}".format(*numbers))
    return encoder, tensors, networks and networks.trees, lines


def _check_output(output: AnyPath, layout: str | None) -> bool:
    """Whether the output is a file; refuses one that cannot be written."""
    to_file = is_tensor_file(output)
    if layout is not None and (to_file or output.exists()):
        raise UserError(f"--output={output} must be a new folder for --layout={layout}.")
    if to_file:
        if output.is_dir():
            raise UserError(f"--output={output} is a folder, but its name is that of a file.")
        if output.suffix in (".pth", ".pt", ".tar") and importlib.util.find_spec("torch") is None:
            raise UserError(
                f"--output={output}: this kind of file needs PyTorch, which is not installed; "
                "`pip install torch` or write .safetensors."
            )
    elif output.suffix[1:].isalpha():
        raise UserError(
            f"--output={output}: a weights file must end in one of {', '.join(SUFFIXES)}, "
            "and the name of a folder in none."
        )
    elif output.is_file():
        raise UserError(f"--output={output} is a file; a folder would be written there.")
    elif output.is_dir() and any(output.iterdir()) and not is_export(output):
        raise UserError(
            f"--output={output} is a folder with other content; name a new one, or an encoder's "
            "export to replace."
        )
    return to_file


def _write_folder(output: AnyPath, encoder: tuple, networks: dict | None, source: AnyPath) -> None:
    """Writes an export beside the output and puts it in its place once it is whole."""
    workspace = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    fresh, old = workspace / "new", workspace / "old"
    try:
        export_encoder(fresh, *encoder, converted_from=str(source))
        if networks is not None:
            save_networks(fresh, networks)
        if output.exists():
            output.rename(old)
        try:
            fresh.rename(output)
        except OSError:
            if old.exists():
                old.rename(output)
            raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
