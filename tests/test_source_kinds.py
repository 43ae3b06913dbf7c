"""The same images as a folder, a list, parquet, tar files and a saved table are the same source."""

import csv
import io
import re
import tarfile

import datasets
import numpy as np
import pytest
from data_samples import photographs as write_photographs, small_images as write_small_images

from resa_jax.data.check import check_source
from resa_jax.data.folder import list_folder
from resa_jax.data.pipeline import batches
from resa_jax.data.sources import open_source
from resa_jax.errors import UserError


KINDS = ("folder", "list", "parquet", "tar", "saved")


@pytest.fixture(scope="module", params=["photographs", "small images"])
def places(request, tmp_path_factory):
    """The name of a source of each kind."""
    root = tmp_path_factory.mktemp("kinds")
    write = write_photographs if request.param == "photographs" else write_small_images
    images = list_folder(str(write(root / "images")))
    numbered = [
        (f"{images.root}/{name}", images.class_names[label], label)
        for name, label in zip(images.names, images.labels, strict=True)
    ]
    with (root / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *(row[:2] for row in numbered)])
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(images.class_names))}
    )
    rows = {"image": [path for path, _, _ in numbered], "label": [label for *_, label in numbered]}
    table = datasets.Dataset.from_dict(rows, features=features)
    (root / "parquet").mkdir()
    table.to_parquet(root / "parquet" / "train-00000-of-00001.parquet")
    table.save_to_disk(root / "saved")
    (root / "tar").mkdir()
    with tarfile.open(root / "tar" / "train-000.tar", "w") as archive:
        for number, (path, _, label) in enumerate(numbered):
            archive.add(path, f"{number:04}.jpg")
            info = tarfile.TarInfo(f"{number:04}.cls")
            info.size = len(str(label))
            archive.addfile(info, io.BytesIO(str(label).encode()))
    return {
        "folder": f"folder:{images.root}",
        "list": f"list:{root}/list.csv",
        **{kind: f"hf:{root}/{kind}" for kind in ("parquet", "tar", "saved")},
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """`datasets` unpacks into a cache, which the tests leave alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_images_labels_and_streams_are_the_folders(places, kind):
    folder, other = open_source(places["folder"]), open_source(places[kind])
    assert len(other) == len(folder)
    assert other.in_memory == folder.in_memory
    np.testing.assert_array_equal(other.labels, folder.labels)
    if kind != "tar":  # whose labels are numbers without names
        assert other.class_names == folder.class_names
    for index in range(len(folder)):
        np.testing.assert_array_equal(other[index], folder[index])

    options = {"batch_size": 8, "seed": 3, "num_steps": 6}
    with batches(folder, start_step=0, **options) as stream:
        unbroken = list(stream)[4:]
    with batches(other, start_step=4, **options) as stream:
        for expected, batch in zip(unbroken, stream, strict=True):
            for name in ("images", "sizes", "labels", "indices"):
                np.testing.assert_array_equal(batch[name], expected[name])


def test_classes_are_chosen_by_their_names(places, tmp_path):
    names = open_source(places["folder"]).class_names[:2]
    chosen = tmp_path / "classes.txt"
    chosen.write_text("\n".join(names))
    sizes = set()
    for kind in ("folder", "list", "parquet"):
        source = open_source(places[kind], classes=str(chosen))
        assert source.class_names == names
        sizes.add(len(source))
    assert len(sizes) == 1


def test_a_list_of_lines_has_no_labels(tmp_path):
    write_small_images(tmp_path / "images", per_class=1)
    names = list_folder(str(tmp_path / "images")).names
    listed = tmp_path / "list.txt"
    listed.write_text("\n\n".join(f"images/{name}" for name in names))
    source = open_source(f"list:{listed}")
    assert (len(source), source.labels) == (len(names), None)
    assert check_source(f"list:{listed}") == len(names)


def test_labels_that_are_numbers_are_numbered_by_value(tmp_path):
    write_small_images(tmp_path, per_class=1)
    first, second, third = list_folder(str(tmp_path)).names[:3]
    listed = tmp_path / "list.csv"
    listed.write_text(f"split,Label,Path\na,10,{first}\nb,9,{second}\n\nc,10,{third}\n")
    source = open_source(f"list:{listed}")
    assert source.class_names == ("9", "10")
    assert source.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("a.csv", "image,label\n\n", "names no image"),
        ("a.csv", "", "has no column `path` in its first line; it has nothing"),
        ("a.csv", "image.jpg,cat\n", "has no column `path` .* it has 'image.jpg', 'cat'"),
        ("a.csv", "path,label\nIMAGE\n", "line 2: 1 fields, where the first line names 2"),
        ("a.csv", "path,label\nIMAGE,\n", "line 2: the label is empty"),
        ("a.csv", 'path,label\n"IMAGE,a\n', "cannot be read as CSV"),
        ("a.csv", "path\nnowhere.jpg\n", "line 2: there is no file .*nowhere.jpg"),
        ("a.txt", "\n \n", "names no image"),
        ("a.txt", "IMAGE\n\nnowhere.jpg", "line 3: there is no file"),
        ("a.txt", b"\xff\xfe", "is not in UTF-8"),
        ("b.txt", None, "does not exist"),
    ],
)
def test_lists_with_mistakes(tmp_path, name, content, sentence):
    write_small_images(tmp_path / "images", per_class=1)
    image = f"images/{list_folder(str(tmp_path / 'images')).names[0]}"
    if content is not None:
        data = content if isinstance(content, bytes) else content.replace("IMAGE", image).encode()
        (tmp_path / name).write_bytes(data)
    for look in (check_source, open_source):
        with pytest.raises(UserError, match=sentence):
            look(f"list:{tmp_path / name}")


def test_tables_with_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"hf:.*nowhere, split train cannot be opened: "):
        open_source(f"hf:{tmp_path}/nowhere")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(UserError, match=re.escape("has no column of images; it has text (Value)")):
        open_source(f"hf:{tmp_path}/text")
    write_small_images(tmp_path / "images", per_class=1)
    paths = [f"{tmp_path}/images/{name}" for name in list_folder(f"{tmp_path}/images").names[:2]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("float32")})
    table = datasets.Dataset.from_dict({"image": paths, "label": [0.5, 1.5]}, features=features)
    table.save_to_disk(tmp_path / "real")
    with pytest.raises(UserError, match="must hold whole numbers or texts"):
        open_source(f"hf:{tmp_path}/real")


def test_hidden_labels_are_none(tmp_path):
    write_small_images(tmp_path / "images", per_class=1)
    paths = [f"{tmp_path}/images/{name}" for name in list_folder(f"{tmp_path}/images").names]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": paths, "label": [-1] * len(paths)}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "hidden")
    assert not open_source(f"hf:{tmp_path}/hidden").is_labelled
