"""Encodings of any images, their nearest neighbours, and groups of them.

python -m resa_jax.embed --encoder=PATH --source=SOURCE --output=FILE.npz

FILE.npz gets `encodings` [n, d], `labels` [n] (-1: none), `paths` [n] and, where the images have
classes, `class_names`; it is what `evaluate --features` reads.
--query=IMAGE,... also finds the images nearest to some files, or to images of the source given by
number: a printed table, FILE.neighbours.csv and FILE.neighbours.png.
--groups=K also sorts the images into K groups by k-means: FILE.groups.csv and FILE.groups.png.
Sets of near-duplicates, images whose encodings are alike by at least 0.98, come with
--duplicates=0.98, and the N images least like any other with --outliers=N: FILE.duplicates.csv and
.png, FILE.outliers.csv and .png.
All go by the direction of the encodings (cosine). FILE.parquet has the same as columns.
Started on every host of a slice or cluster, as `resa_jax.main` is, the processes share the work.
"""

import os

from absl import flags

from resa_jax.cli import run
from resa_jax.data.check import KINDS, check_source
from resa_jax.errors import UserError
from resa_jax.image_flags import define_statistics
from resa_jax.paths import AnyPath, as_path, local_output
from resa_jax.processes import cluster


_ENCODER = flags.DEFINE_string(
    "encoder",
    None,
    "A run's workdir, DIR/checkpoints/STEP, an export, or PyTorch weights.",
    required=True,
)
_ARCH = flags.DEFINE_string("arch", None, "Architecture of PyTorch weights.")
_NETWORK = flags.DEFINE_enum("network", "ema", ["ema", "online"], "Which network of a checkpoint.")
_SOURCE = flags.DEFINE_string("source", None, f"Images: {KINDS}.", required=True)
_SPLIT = flags.DEFINE_string("split", "train", "Split of a tfds: or hf: source.")
_OUTPUT = flags.DEFINE_string("output", None, "npz or parquet file to write.", required=True)
_LAYERS = flags.DEFINE_list("layers", [], "Further arrays, of p0, p1, embedding (the projector's).")
_QUERY = flags.DEFINE_list("query", [], "Images whose neighbours to find: files, or numbers.")
_NEIGHBOURS = flags.DEFINE_integer("neighbours", 10, "How many of each.", lower_bound=1)
_GROUPS = flags.DEFINE_integer("groups", None, "Number of groups.", lower_bound=2)
_DUPLICATES = flags.DEFINE_float(
    "duplicates", None, "Cosine from which two images are near-duplicates.", lower_bound=0.0
)
_OUTLIERS = flags.DEFINE_integer("outliers", None, "Number of outliers.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of k-means.")
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images at a time.", lower_bound=1)
_ON_BAD_IMAGE = flags.DEFINE_enum("on_bad_image", "error", ["error", "skip"], "Undecodable images.")
_find_processes = cluster.define_flags()
_statistics = define_statistics()


def main(arguments: list[str]) -> None:
    """Checks the command before anything heavy is imported, then embeds."""
    del arguments
    if not as_path(_ENCODER.value, "--encoder=").exists():
        raise UserError(f"--encoder={_ENCODER.value}: there is no such file or folder.")
    count = check_source(_SOURCE.value, None, split=_SPLIT.value)
    output = as_path(_OUTPUT.value, "--output=")
    if output.suffix not in (".npz", ".parquet"):
        raise UserError(f"--output={output} must end in .npz or .parquet.")
    for query in _QUERY.value:
        if not os.path.isfile(query) and not query.isdigit():
            raise UserError(
                f"--query={query} is neither a file nor the number of an image of the source."
            )
    if count is not None and _GROUPS.value is not None and _GROUPS.value > count:
        raise UserError(f"--groups={_GROUPS.value} is more than the {count} images of the source.")

    processes = _find_processes()

    from resa_jax.processes.distributed import joined_processes

    with joined_processes(processes):
        _embed(output)


def _embed(output: AnyPath) -> None:
    import jax

    from resa_jax.data.sources import open_source
    from resa_jax.encoder import load_encoder
    from resa_jax.evaluation.features import extract
    from resa_jax.evaluation.preprocessing import Preprocessing
    from resa_jax.processes.agreement import check_alike
    from resa_jax.report import collection

    encoder = load_encoder(
        _ENCODER.value,
        _ARCH.value,
        _NETWORK.value,
        projector=bool(_LAYERS.value),
        **_statistics(),
    )
    source = open_source(
        _SOURCE.value,
        encoder.spec.decoding,
        split=_SPLIT.value,
        on_bad_image=_ON_BAD_IMAGE.value,
    )
    facts = {f"--{flag.name}": repr(flag.value) for flag in (_LAYERS, _BATCH, _ON_BAD_IMAGE)}
    check_alike(facts | {"the encoder": encoder.fingerprint()}, {"--source": source})
    preprocessing = Preprocessing.of(encoder.spec)
    layers = ("encoding", *_LAYERS.value)
    batch_size = min(_BATCH.value, len(source))
    arrays = extract(encoder, source, _SOURCE.value, preprocessing, layers, batch_size=batch_size)
    if jax.process_index() > 0:
        return
    images = collection.Collection(source, _SOURCE.value, arrays, encoder.spec.decoding)
    output.parent.mkdir(parents=True, exist_ok=True)
    with local_output(output) as local:
        images.save(local)
        shape = arrays["encoding"].shape
        print(f"{shape[0]} encodings of {shape[1]} numbers each are in {output}.")
        if _QUERY.value:
            encode = collection.query_encoder(encoder, preprocessing)
            print(images.find_neighbours(_QUERY.value, encode, _NEIGHBOURS.value, local))
        if _GROUPS.value is not None:
            print(images.make_groups(_GROUPS.value, _SEED.value, local))
        if _DUPLICATES.value is not None:
            print(images.find_duplicates(_DUPLICATES.value, local))
        if _OUTLIERS.value is not None:
            print(images.find_outliers(_OUTLIERS.value, local))


if __name__ == "__main__":
    run(main)
