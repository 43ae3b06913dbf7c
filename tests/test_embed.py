"""Encodings in a file, neighbours, groups, and the export for serving."""

import csv
import subprocess
import sys

import jax
import numpy as np
import pytest
from evaluation_run import ROOT, make_run
from PIL import Image

from resa_jax.data.sources import open_source
from resa_jax.encoder import load_encoder
from resa_jax.errors import UserError
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.report.collection import Collection, query_encoder
from resa_jax.serving import check_export, export_stablehlo


def run_command(name, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"resa_jax.{name}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("embed") / "run")


@pytest.fixture
def folder(tmp_path):
    """Twelve coloured images in two classes, of two sizes."""
    rng = np.random.default_rng(0)
    for n in range(12):
        path = tmp_path / "images" / ("ab"[n % 2]) / f"{n:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (8 + 4 * (n % 3), 12, 3)
        pixels = rng.integers(0, 40, shape) + 200 * np.eye(3)[n % 3]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return tmp_path / "images"


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_command_writes_encodings_neighbours_and_groups(workdir, folder, tmp_path):
    output = tmp_path / "out" / "encodings.npz"
    query = folder / "a" / "00.png"
    result = run_command(
        *("embed", f"--encoder={workdir}", f"--source=folder:{folder}", f"--output={output}"),
        *(f"--query={query}", "--neighbours=3", "--groups=3", "--layers=embedding"),
    )
    assert result.returncode == 0, result.stderr
    with np.load(output) as file:
        arrays = dict(file)
    assert arrays["encodings"].shape == (12, 64) and arrays["embedding"].shape == (12, 16)
    assert arrays["class_names"].tolist() == ["a", "b"]
    assert [path.removeprefix(f"{folder}/") for path in arrays["paths"]] == [
        f"{'ab'[n % 2]}/{n:02}.png" for n in (0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11)
    ]
    np.testing.assert_array_equal(arrays["labels"], [0] * 6 + [1] * 6)

    unit = arrays["encodings"] / np.linalg.norm(arrays["encodings"], axis=1, keepdims=True)
    order = np.argsort(-unit @ unit[0], kind="stable")[:3]
    rows = read_csv(output.with_suffix(".neighbours.csv"))
    assert [row["path"] for row in rows] == arrays["paths"][order].tolist()
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-3)  # a file of the source itself
    groups = read_csv(output.with_suffix(".groups.csv"))
    assert sorted(row["path"] for row in groups) == sorted(arrays["paths"])
    assert {row["group"] for row in groups} == {"0", "1", "2"}
    for kind in ("neighbours", "groups"):
        with Image.open(output.with_suffix(f".{kind}.png")) as picture:
            assert picture.width > 200

    evaluate = run_command("evaluate", f"--features={output}", "--protocol=knn-cifar", "--k=2")
    assert evaluate.returncode == 0, evaluate.stderr
    assert "9 to train, 3 to test, 2 classes" in evaluate.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output={here}/x.txt"], "must end in .npz or .parquet"),
        (["--encoder=nowhere"], "--encoder=nowhere: there is no such file"),
        (["--source=folder:nowhere"], "folder:nowhere"),
        (["--query=nowhere.jpg"], "--query=nowhere.jpg is neither"),
        (["--groups=2000"], "more than the 1797 images"),
        (["--groups=x"], "groups"),
    ],
)
def test_mistakes(tmp_path, arguments, words):
    base = [f"--encoder={tmp_path}", "--source=digits", f"--output={tmp_path}/x.npz"]
    result = run_command("embed", *base, *(text.format(here=tmp_path) for text in arguments))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert words in result.stderr.strip().splitlines()[-1]


def test_neighbours_of_an_image_of_the_source(tmp_path):
    source = open_source("digits")
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    arrays = {"encoding": features, "labels": source.labels[:30], "indices": np.arange(30)}
    images = Collection(source, "digits", arrays)
    encode = lambda image: pytest.fail("an image of the source has its encoding already")
    text = images.find_neighbours(["7"], encode, 5, tmp_path / "x.npz")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = unit @ unit[7]
    similarities[7] = -2
    expected = [f"digits {row}" for row in np.argsort(-similarities)[:5]]
    rows = read_csv(tmp_path / "x.neighbours.csv")
    assert [row["path"] for row in rows] == expected
    assert expected[0] in text
    with pytest.raises(UserError, match="has images 0 to 1796"):
        images.find_neighbours(["5000"], encode, 5, tmp_path / "x.npz")
    with pytest.raises(UserError, match="ask for fewer"):
        images.find_neighbours(["7"], encode, 30, tmp_path / "x.npz")


@pytest.fixture
def collection(tmp_path):
    """Fifteen images of chosen encodings: two pairs nearly alike, a set of three, a loner."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (15, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(15) % 3)
    encodings = np.eye(16, dtype=np.float32)[:15] + 2  # alike by 0.98
    encodings[3] = 1.5 * encodings[7] + 1e-3 * rng.normal(size=16)
    encodings[5] = encodings[11] + 1e-3 * rng.normal(size=16)
    encodings[[2, 9]] = encodings[14] * [[1.0], [2.0]]
    encodings[12] = rng.normal(size=16)
    source = open_source(f"npz:{tmp_path / 'images.npz'}")
    arrays = {"encoding": encodings, "labels": source.labels, "indices": np.arange(15)}
    return Collection(source, "npz:images", arrays)


def test_near_duplicates(collection, tmp_path):
    said = collection.find_duplicates(0.9999, tmp_path / "out.npz")
    assert said.startswith("3 sets of near-duplicates, 4 images beyond the first of each.")
    rows = read_csv(tmp_path / "out.duplicates.csv")
    sets = [
        [int(row["path"].split()[-1]) for row in rows if row["set"] == str(n)] for n in range(3)
    ]
    assert sets == [[2, 9, 14], [3, 7], [5, 11]]
    assert all(float(row["similarity"]) > 0.9999 for row in rows)
    assert rows[0]["class"] == "2"
    with Image.open(tmp_path / "out.duplicates.png") as picture:
        assert picture.height > 3 * 72
    none = collection.find_duplicates(1.5, tmp_path / "none.npz")
    assert none.startswith("0 sets of near-duplicates, 0 images")
    assert read_csv(tmp_path / "none.duplicates.csv") == []


def test_outliers(collection, tmp_path):
    collection.find_outliers(3, tmp_path / "out.npz")
    rows = read_csv(tmp_path / "out.outliers.csv")
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["path"] == "npz:images 12"
    assert float(rows[0]["similarity"]) < 0.9 < float(rows[1]["similarity"])


def test_many_images_exactly_alike(tmp_path):
    """An image among more copies of itself than are looked at is still no copy of its own."""
    np.savez(tmp_path / "same.npz", images=np.zeros((30, 4, 4, 3), np.uint8))
    source = open_source(f"npz:{tmp_path / 'same.npz'}")
    labels = np.full(30, -1)
    arrays = {"encoding": np.ones((30, 4), np.float32), "labels": labels, "indices": np.arange(30)}
    said = Collection(source, "same", arrays).find_duplicates(0.99, tmp_path / "out.npz")
    assert said.startswith("1 sets of near-duplicates, 29 images")


def test_parquet_has_a_row_for_each_image(collection, tmp_path):
    from pyarrow import parquet

    collection.save(tmp_path / "out.parquet")
    collection.save(tmp_path / "out.npz")
    table, arrays = parquet.read_table(tmp_path / "out.parquet"), np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(np.array(table["encodings"].to_pylist()), arrays["encodings"])
    assert table["paths"].to_pylist() == arrays["paths"].tolist()
    assert table["class"].to_pylist() == [str(n % 3) for n in range(15)]


def test_query_encoder_agrees_with_load_encoder(workdir):
    encoder = load_encoder(workdir)
    encode = query_encoder(encoder, Preprocessing.of(encoder.spec))
    image = open_source("digits")[11]
    expected = encoder(image[None])[0]
    np.testing.assert_allclose(encode(image), expected, rtol=1e-5, atol=1e-5)


def test_stablehlo_has_a_symbolic_batch(workdir):
    encoder = load_encoder(workdir / "encoder")
    serialized = export_stablehlo(encoder, ("cpu", "tpu"))
    exported = jax.export.deserialize(bytearray(serialized))
    assert exported.platforms == ("cpu", "tpu")
    assert str(exported.in_avals[0].shape[0]) == "batch"
    assert check_export(encoder, serialized, batches=(1, 3, 8)) < 1e-4
    images = np.stack([open_source("digits")[row] for row in range(6)])
    np.testing.assert_allclose(exported.call(images), encoder(images), rtol=1e-4, atol=1e-4)
