"""The protocols on features: names and numbers, labels of two sources, mistakes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from evaluation_run import ROOT

from resa_jax.errors import UserError
from resa_jax.evaluation import knn, linear
from resa_jax.evaluation.clustering import clustering, fixed_split
from resa_jax.evaluation.command import evaluate_features
from resa_jax.evaluation.feature_sets import FeatureSet, align_labels, read_features
from resa_jax.evaluation.protocols import PROTOCOLS, create_protocol
from resa_jax.evaluation.superclasses import FINE_NAMES, SUPERCLASSES, coarse_labels


# CIFAR-100's own table: the coarse label of each fine label, as its pickle files pair them.
COARSE = [
    *[4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7],
    *[6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10],
    *[16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16],
    *[12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13],
]


def feature_set(n, seed=0, num_classes=7):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, n)
    names = tuple(str(label) for label in range(num_classes))
    return FeatureSet({"encoding": rng.normal(size=(n, 6)).astype(np.float32)}, labels, names)


def save(path, features, **arrays):
    arrays = {"encodings": features.layers["encoding"], "labels": features.labels} | arrays
    np.savez(path, **arrays)
    return path


def test_superclasses_are_those_of_cifar_100():
    assert len(FINE_NAMES) == 100 and len(SUPERCLASSES) == 20
    np.testing.assert_array_equal(coarse_labels(np.arange(100), FINE_NAMES), COARSE)
    numbers = tuple(str(label) for label in range(100))
    np.testing.assert_array_equal(coarse_labels(np.arange(100), numbers), COARSE)
    with pytest.raises(UserError, match="'unicorn' is none of them"):
        coarse_labels(np.array([0, 1]), ("apple", "unicorn"))


def test_coarse_scores_the_superclasses():
    train, test = (
        FeatureSet(part.layers, part.labels, FINE_NAMES)
        for part in (feature_set(300, 0, 100), feature_set(50, 1, 100))
    )
    results = create_protocol("coarse", epochs=2).score(train, test, seed=4)
    sets = train.layers["encoding"], np.array(COARSE)[train.labels]
    sets += test.layers["encoding"], np.array(COARSE)[test.labels]
    assert results["k5"] == knn.knn_cifar(*sets)
    assert results["linear"] == linear.linear_cifar(*sets, seed=4, epochs=2)


def test_fields_of_a_protocol_reach_its_computation():
    train, test = feature_set(90), feature_set(40, 1)
    sets = train.layers["encoding"], train.labels, test.layers["encoding"], test.labels
    weighted = create_protocol("knn-weighted", ks=(3,), temperature=1.0).score(train, test, 0)
    assert weighted == {"k3": knn.knn_weighted(*sets, ks=(3,), temperature=1.0)[3]}
    cifar = create_protocol("knn-cifar", k=7).score(train, test, 0)
    assert cifar == {"k7": knn.knn_cifar(*sets, k=7)}
    fields = {"epochs": 3, "batch_size": 16, "weight_decay": 0.1, "last_rate": 1e-3}
    probe = create_protocol("linear-cifar", **fields).score(train, test, 2)
    assert probe == {"linear": linear.linear_cifar(*sets, seed=2, **fields)}
    clusters = create_protocol("clustering", num_init=2).score(train, None, 3)
    expected = clustering(train.layers["encoding"], train.labels, seed=3, num_init=2)
    assert clusters == {"encoding": expected}


def test_test_labels_are_numbered_by_name():
    train_names, test_names = ("ant", "bee", "cat", "dog"), ("bee", "dog", "eel")
    train_labels = np.array([0, 1, 2, 3])
    labels = align_labels(np.array([1, 0, 0]), test_names, train_labels, train_names)
    assert labels.tolist() == [3, 1, 1]
    with pytest.raises(UserError, match="lacks 1 of the test source's 2 classes: 'eel'"):
        align_labels(np.array([0, 2]), test_names, train_labels, train_names)
    with pytest.raises(UserError, match="'dog'"):  # named, but without an image to learn from
        align_labels(np.array([1]), test_names, np.array([0, 1]), train_names)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("knn-weigted", {}, "'knn-weigted'; the nearest is 'knn-weighted'"),
        ("knn-cifar", {"epochs": 3}, "knn-cifar has no epochs to set"),
        ("linear-cifar", {"epochs": 0}, "epochs=0 of protocol linear-cifar must be positive"),
        ("knn-weighted", {"ks": (5, -1)}, r"ks=\(5, -1\)"),
        ("knn-cifar", {"normalization": "mine"}, "must be one of authors, matched"),
    ],
)
def test_mistakes_in_a_protocol(name, fields, words):
    with pytest.raises(UserError, match=words):
        create_protocol(name, **fields)


def test_protocol_numbers_of_the_paper():
    """The numbers of the authors' code and Table 9."""
    weighted, cifar = PROTOCOLS["knn-weighted"](), PROTOCOLS["linear-cifar"]()
    assert (weighted.ks, weighted.temperature) == ((5, 10, 20), 0.07)
    assert (cifar.epochs, cifar.batch_size, cifar.first_rate, cifar.last_rate) == (
        *(500, 1000, 1e-2, 1e-6),
    )
    assert PROTOCOLS["knn-cifar"]().k == 5
    imagenet = PROTOCOLS["linear-imagenet"]()
    assert (imagenet.epochs, imagenet.batch_size, imagenet.milestones) == (100, 256, (60, 80))
    finetune = PROTOCOLS["finetune-1"]()
    assert (finetune.epochs, finetune.encoder_rate, finetune.head_rate) == (20, 2e-4, 40)


def test_mistakes_in_a_file_of_features(tmp_path):
    features = feature_set(5)
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 8, 8)))
    save(tmp_path / "flat.npz", features, encodings=np.zeros(5))
    save(tmp_path / "labels.npz", features, labels=np.zeros(4, int))
    save(tmp_path / "unlabelled.npz", features, labels=np.full(5, -1))
    save(tmp_path / "nan.npz", features, encodings=np.full((5, 2), np.nan))
    for name, words in (
        ("text", "cannot be read as an npz file"),
        ("images", "has no array 'encodings'; it has images"),
        ("flat", r"of shape \(5,\)"),
        ("labels", r"one for each encoding; they are int64 of shape \(4,\)"),
        ("unlabelled", "labels must not be negative; one is -1"),
        ("nan", "not finite"),
    ):
        with pytest.raises(UserError, match=words):
            read_features(tmp_path / f"{name}.npz")


def run_evaluate(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "resa_jax.evaluate", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_command_on_features(tmp_path):
    train, test = feature_set(80), feature_set(30, 1)
    files = save(tmp_path / "train.npz", train), save(tmp_path / "test.npz", test)
    arguments = [f"--features={files[0]}", f"--test_features={files[1]}", "--seed=3"]
    output = tmp_path / "result.json"
    texts = []
    for _ in range(2):
        result = run_evaluate(*arguments, "--protocol=knn-weighted", f"--output={output}")
        assert result.returncode == 0, result.stderr
        texts.append(output.read_text())
    assert texts[0] == texts[1]
    record = json.loads(texts[0])
    assert record["protocol"] == "knn-weighted"
    assert record["hyperparameters"] == {"ks": [5, 10, 20], "temperature": 0.07}
    assert record["features"] == str(files[0]) and record["test_features"] == str(files[1])
    assert (record["seed"], record["num_train"], record["num_test"]) == (3, 80, 30)
    sets = train.layers["encoding"], train.labels, test.layers["encoding"], test.labels
    expected = knn.knn_weighted(*sets)
    assert record["results"] == {f"k{k}": scores for k, scores in expected.items()}
    for k in (5, 10, 20):
        assert f"k{k} " in result.stdout and f"{expected[k]['top1']:.2f}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--protocol=knn-weighted"], "Give either --encoder=PATH"),
        (["--protocol=knn"], "'knn'; the nearest is"),
        (["--protocol=knn-cifar", "--features=nowhere.npz"], "nowhere.npz: there is no such file"),
        (["--protocol=linear-imagenet", "--features={train}"], "trains on images"),
        (["--protocol=knn-cifar", "--encoder=nowhere", "--source=digits"], "nowhere"),
        (["--protocol=knn-cifar", "--encoder={here}"], "needs --source"),
        (["--protocol=knn-cifar", "--bogus=1"], "bogus"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, arguments, words):
    places = {
        "train": save(tmp_path / "train.npz", feature_set(20)),
        "here": tmp_path,
    }
    result = run_evaluate(*(argument.format(**places) for argument in arguments))
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert words in result.stderr.strip().splitlines()[-1]


def evaluate_files(name, *paths):
    ((result, path),) = evaluate_features([create_protocol(name)], *paths, seed=0)
    assert path is None
    return result


def test_without_test_features_one_in_five_is_held_out(tmp_path):
    features = feature_set(60)
    path = save(tmp_path / "all.npz", features)
    bank, test = fixed_split(60)
    values, labels = features.layers["encoding"], features.labels
    expected = knn.knn_cifar(values[bank], labels[bank], values[test], labels[test])
    assert evaluate_files("knn-cifar", path, None)["results"]["k5"] == expected


def test_features_that_do_not_fit(tmp_path):
    train = save(tmp_path / "train.npz", feature_set(20))
    small = save(tmp_path / "small.npz", feature_set(4))
    other = save(tmp_path / "other.npz", feature_set(9), labels=np.full(9, 8))
    wide = save(tmp_path / "wide.npz", feature_set(9), encodings=np.zeros((9, 8)))
    with pytest.raises(UserError, match="only 3 features"):
        evaluate_files("knn-weighted", small, None)
    with pytest.raises(UserError, match="lacks 1 of the test source's 1 classes: '8'"):
        evaluate_files("knn-cifar", train, other)
    with pytest.raises(UserError, match="6 numbers each and the test features 8"):
        evaluate_files("knn-cifar", train, wide)
