"""`evaluate` on images: what is scored, what is recorded and where, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from data_samples import prepare_tfds, small_images
from evaluation_run import ROOT, initial_state, make_run
from PIL import Image

from resa_jax.config import load_config
from resa_jax.data.sources import open_source
from resa_jax.encoder import load_encoder
from resa_jax.errors import UserError
from resa_jax.evaluation import features, knn
from resa_jax.evaluation.clustering import fixed_split
from resa_jax.evaluation.command import Request, evaluate_encoders, find_workdir
from resa_jax.evaluation.linear import linear_cifar
from resa_jax.evaluation.online import OnlineEvaluation
from resa_jax.evaluation.protocols import create_protocol
from resa_jax.models.network import Network
from resa_jax.report.tables import format_result
from resa_jax.sharding import create_mesh


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Two npz files of digits, 150 to train and 50 to test on."""
    folder, source = tmp_path_factory.mktemp("digits"), open_source("digits")
    images = np.stack([source[row] for row in range(200)])
    np.savez(folder / "train.npz", images=images[:150], labels=source.labels[:150])
    np.savez(folder / "test.npz", images=images[150:], labels=source.labels[150:200])
    np.savez(folder / "plain.npz", images=images[:40])
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, digits):
    path = tmp_path_factory.mktemp("command") / "run"
    return make_run(path, f"data.source=npz:{digits / 'train.npz'}")


def make_request(digits, encoder, **changes):
    request = Request(
        encoder=encoder,
        arch=None,
        network="ema",
        source=f"npz:{digits / 'train.npz'}",
        split="train",
        test_source=f"npz:{digits / 'test.npz'}",
        test_split="test",
        classes=None,
        seed=0,
        all_checkpoints=False,
        cache=None,
        image_size=None,
        resize=None,
        batch_size=64,
        on_bad_image="error",
    )
    return dataclasses.replace(request, **changes)


def test_result_and_record(digits, workdir):
    protocols = [create_protocol(name) for name in ("knn-weighted", "knn-cifar")]
    first = list(evaluate_encoders(protocols, make_request(digits, workdir / "encoder")))
    again = list(evaluate_encoders(protocols, make_request(digits, workdir)))
    encoder, sets = load_encoder(workdir), []
    for name in ("train", "test"):
        with np.load(digits / f"{name}.npz") as arrays:
            sets += [np.asarray(encoder(arrays["images"])), arrays["labels"].astype(int)]
    expected = {f"k{k}": scores for k, scores in knn.knn_weighted(*sets).items()}
    (weighted, path), (cifar, _) = first
    assert weighted["results"] == expected
    assert cifar["results"] == {"k5": knn.knn_cifar(*sets)}
    assert [result["results"] for result, _ in again] == [expected, cifar["results"]]
    assert path == workdir / "evaluation" / "knn-weighted.json"
    record = json.loads(json.dumps(weighted))
    assert record["protocol"] == "knn-weighted"
    assert record["hyperparameters"] == {"ks": [5, 10, 20], "temperature": 0.07}
    assert record["encoder"] == str(workdir / "encoder")
    assert (record["step"], record["network"], record["seed"]) == (4, "ema", 0)
    assert record["source"].endswith("train.npz") and record["test_source"].endswith("test.npz")
    assert (record["num_train"], record["num_test"], record["num_classes"]) == (150, 50, 10)
    assert record["preprocessing"]["mean"] == [0.3, 0.3, 0.3]
    text = format_result(weighted)
    assert "step 4; 150 to train, 50 to test, 10 classes" in text
    assert f"{expected['k20']['top5']:.2f}" in text.splitlines()[-1]


def test_a_long_tail_to_train_on(digits, workdir):
    """The largest class over the smallest; what is classified stays whole."""
    request = make_request(digits, workdir, long_tail=4.0)
    ((result, path),) = evaluate_encoders([create_protocol("knn-weighted")], request)
    with np.load(digits / "train.npz") as arrays:
        counts = np.bincount(arrays["labels"])
    sizes = [int(counts.min() * 0.25 ** (place / 9)) for place in range(10)]
    assert (result["num_train"], result["num_test"]) == (sum(sizes), 50)
    assert result["long_tail"] == 4.0 and path.name == "knn-weighted-long_tail4.json"


def test_all_checkpoints_are_clustered(digits, workdir):
    request = make_request(digits, workdir, all_checkpoints=True)
    results = list(evaluate_encoders([create_protocol("clustering")], request))
    assert [path.name for _, path in results] == [
        "clustering-step2.json",
        "clustering-step4.json",
    ]
    for result, _ in results:
        assert list(result["results"]) == ["encoding", "p0", "p1", "embedding"]
        assert result["num_test"] is None
    assert results[0][0]["results"] != results[1][0]["results"]


@pytest.mark.parametrize(
    ("changes", "protocol", "words"),
    [
        ({"source": "plain"}, "knn-cifar", "has no labels, which protocol knn-cifar needs"),
        ({"resize": 4}, "knn-cifar", "--resize=4 is too small for the 8 px"),
        ({"source": "test", "test_source": None}, "knn-weighted", None),
    ],
)
def test_requests(digits, workdir, changes, protocol, words):
    if "source" in changes:
        changes = changes | {"source": f"npz:{digits / changes['source']}.npz"}
    request = make_request(digits, workdir, **changes)
    if words is None:
        ((result, path),) = evaluate_encoders([create_protocol(protocol)], request)
        assert result["test_source"].startswith("one in five of npz:")
        assert (result["num_train"], result["num_test"]) == (40, 10)
        assert path.name.startswith("knn-weighted-npz-")  # not the run's own source
        return
    with pytest.raises(UserError, match=words):
        list(evaluate_encoders([create_protocol(protocol)], request))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "used"),
    [
        (
            "0.5071,0.4865,0.4409",
            {"authors": (0.4914, 0.4822, 0.4465), "matched": (0.5071, 0.4865, 0.4409)},
        ),
        ("0.3,0.3,0.3", {"authors": (0.3, 0.3, 0.3)}),
    ],
)
def test_normalization_of_the_cifar_protocols(digits, tmp_path, own, used):
    workdir = make_run(tmp_path / "run", f"data.mean=({own})", steps=(1,))
    for normalization, mean in used.items():
        protocol = create_protocol("knn-cifar", normalization=normalization)
        ((result, _),) = evaluate_encoders([protocol], make_request(digits, workdir))
        assert result["preprocessing"]["mean"] == mean
        assert result["hyperparameters"]["normalization"] == normalization


def test_workdir_of_an_encoder(workdir, tmp_path):
    for place in ("", "encoder", "checkpoints/4"):
        assert find_workdir(workdir / place) == workdir
    assert find_workdir(tmp_path) is None


def test_scores_during_training_are_those_of_the_protocol(digits, workdir):
    config = load_config(
        str(ROOT / "configs/digits.py:smoke"),
        ["data.mean=(0.3,0.3,0.3)", "data.std=(0.4,0.4,0.4)", "eval.max_images=150"],
    )
    networks, state = initial_state(config, 4)  # as make_run's last step
    mesh, source = create_mesh(), open_source(f"npz:{digits / 'train.npz'}")
    with jax.set_mesh(mesh):
        online = OnlineEvaluation(config, networks.evaluated, mesh, source, None)
        scores = online(*state.evaluated)
    protocol = create_protocol("clustering")
    ((result, _),) = evaluate_encoders([protocol], make_request(digits, workdir, test_source=None))
    for layer in ("encoding", "p0", "p1", "embedding"):
        for score, value in result["results"][layer].items():
            assert scores[f"eval/{layer}_{score}"] == pytest.approx(value, rel=1e-5)


def online_evaluation(source, *overrides):
    own = ["data.mean=(0.3,0.3,0.3)", "data.std=(0.4,0.4,0.4)", "eval.max_images=150"]
    config = load_config(str(ROOT / "configs/digits.py:smoke"), [*own, *overrides])
    networks, state = initial_state(config, 4)
    return OnlineEvaluation(config, networks.evaluated, create_mesh(), source, None), state


def test_the_probe_during_training_is_linear_cifar_of_as_many_epochs():
    overrides = "eval.linear_epochs=3", "eval.linear_layers=True", "seed=5"
    online, state = online_evaluation(open_source("digits"), *overrides)
    scores, (layers, labels) = online(*state.evaluated), online.features(*state.evaluated)
    bank, test = fixed_split(len(labels))
    for layer, name in (("encoding", ""), ("p1", "p1_")):
        x = layers[layer]
        sets = x[bank], labels[bank], x[test], labels[test]
        expected = linear_cifar(*sets, seed=5, epochs=3)
        assert scores[f"eval/{name}linear_top1"] == pytest.approx(expected["top1"])
        if not name:
            assert scores["eval/linear_top5"] == pytest.approx(expected["top5"])


def test_scores_during_training_need_two_classes(tmp_path):
    images = np.stack([open_source("digits")[row] for row in range(24)])
    for name, labels in (("one", {"labels": np.full(24, 3)}), ("none", {})):
        np.savez(tmp_path / f"{name}.npz", images=images, **labels)
        online, state = online_evaluation(open_source(f"npz:{tmp_path / name}.npz"))
        assert online(*state.evaluated) == {}
        layers, labels = online.features(*state.evaluated)
        assert layers["encoding"].shape == (24, 64)
        assert labels is None if name == "none" else labels.tolist() == [3] * 24


def test_labels_of_tfds_come_with_the_images(tmp_path, monkeypatch):
    """Reading all records only for their labels would read a large data set twice."""
    rng = np.random.default_rng(0)
    for n in range(20):
        path = tmp_path / "images" / "ab"[n % 2] / f"{n:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (100, 100, 3), np.uint8)).save(path)
    prepare_tfds(tmp_path / "tfds", "large", tmp_path / "images", (None, None, 3))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    source = open_source("tfds:large")
    assert not source.in_memory
    online, state = online_evaluation(source)
    assert online.labelled
    _, labels = online.features(*state.evaluated)
    assert "labels" not in vars(source.images)  # cached there once all records have been read
    assert sorted(labels) == [0] * 10 + [1] * 10
    np.testing.assert_array_equal(labels, source.labels)


@pytest.mark.parametrize("in_run", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_each_image_is_encoded_once(digits, workdir, tmp_path, monkeypatch, in_run):
    """All protocols share the features, train and test sets and checkpoints the program."""
    images, traces = [], []
    encode, trace = features.encode_rows, Network.layers
    monkeypatch.setattr(
        features,
        "encode_rows",
        lambda forward, source, rows, *rest: (
            images.append(len(rows)),
            encode(forward, source, rows, *rest),
        )[1],
    )
    monkeypatch.setattr(Network, "layers", lambda *a: (traces.append(1), trace(*a))[1])
    jax.clear_caches()
    protocols = [
        create_protocol("knn-cifar"),
        create_protocol("linear-cifar", epochs=2),
        create_protocol("clustering"),
        create_protocol("knn-weighted", ks=(3,)),
    ]
    if in_run:
        request = make_request(digits, workdir, all_checkpoints=True)
        results = list(evaluate_encoders(protocols, request))
        assert len(results) == 8 and images == [150, 50] * 2
        assert len(traces) == 1
        return
    shutil.copytree(workdir / "encoder", tmp_path / "encoder")
    results = list(evaluate_encoders(protocols, make_request(digits, tmp_path / "encoder")))
    assert len(results) == 4 and images == [150, 50]
    assert len(traces) == 1


def test_transfer_from_tfds_equals_that_from_folders(workdir, tmp_path, monkeypatch):
    folder = small_images(tmp_path / "images", per_class=2)
    prepare_tfds(tmp_path / "tfds", "birds", folder, (32, 32, 3))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    protocol = create_protocol("knn-weighted", ks=(3,))
    folder = f"folder:{folder}"
    results = []
    for source, test_source in (("tfds:birds", "tfds:birds"), (folder, folder)):
        request = make_request(tmp_path, workdir, source=source, test_source=test_source)
        ((result, _),) = evaluate_encoders([protocol], request)
        results.append(result)
    assert results[0]["results"] == results[1]["results"]
    assert results[0]["source"] == "tfds:birds, split train"
    assert results[0]["test_source"] == "tfds:birds, split test"
