"""The order and the random numbers of batches, wherever the images are kept."""

import hashlib
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from image_sets import assert_same_batches, define_set, prepare_set, tfds_in, write_numbered

from kpipe.data.arrays import ArraySplit
from kpipe.data.augmentations.crops import random_crop, random_resized_crop
from kpipe.data.augmentations.geometric import flip_horizontal, pad_crop
from kpipe.data.augmentations.mix import cutmix, mixup
from kpipe.data.files import FileSplit
from kpipe.data.loading import load_dataset
from kpipe.data.pipeline import iterate_images, make_evaluation_pipeline, make_pipeline
from kpipe.data.records import RecordSplit
from kpipe.data.splits import Splits
from kpipe.errors import ConfigError

# 23 images of 8x8 whose label is their number: 5 batches of 4 an epoch, 3 images left out.
SPLIT = ArraySplit(np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), np.uint8), np.arange(23, dtype=np.int32))
AUGMENT = (pad_crop(2), flip_horizontal())


def batches(**options):
    return list(make_pipeline(SPLIT, 4, **options).as_numpy_iterator())


def labels_of_epoch(epoch, seed=0):
    epochs = batches(seed=seed, first_step=5 * epoch, last_step=5 * epoch + 5)
    return np.concatenate([label for _, label in epochs])


def digest(split=SPLIT, seed=3):
    sha = hashlib.sha256()
    for images, labels in make_pipeline(split, 4, seed=seed, augment=AUGMENT, last_step=12).as_numpy_iterator():
        sha.update(images.tobytes() + labels.tobytes())
    return sha.hexdigest()


def test_batch_contract():
    dataset = make_pipeline(SPLIT, 4, augment=AUGMENT, last_step=5)
    images, labels = dataset.element_spec
    assert (images.dtype, images.shape.as_list()) == ("uint8", [4, 8, 8, 3])
    assert (labels.dtype, labels.shape.as_list()) == ("int32", [4])
    assert int(dataset.cardinality()) == len(list(dataset)) == 5


def test_batches_go_on_for_ever_and_fit_sees_another_epoch_each_time():
    dataset = make_pipeline(SPLIT, 4)
    assert (dataset.cardinality(), dataset.steps_per_epoch) == (tf.data.INFINITE_CARDINALITY, 5)
    seen = []

    class Recording(keras.Model):
        def train_step(self, data):
            seen.append(data[1])
            return {"loss": 0.0}

    inputs = keras.Input((8, 8, 3))
    model = Recording(inputs, keras.layers.Flatten()(inputs)[:, :1])
    model.compile(run_eagerly=True)
    model.fit(dataset, epochs=3, steps_per_epoch=dataset.steps_per_epoch, shuffle=False, verbose=0)
    labels = np.concatenate([each.numpy() for each in seen]).reshape(3, 20)
    np.testing.assert_array_equal(labels, [labels_of_epoch(epoch) for epoch in range(3)])
    assert len({tuple(epoch) for epoch in labels.tolist()}) == 3


def test_each_augmentation_gets_its_own_columns():
    twice = [images for images, _ in batches(augment=(flip_horizontal(), flip_horizontal()), last_step=10)]
    never = [images for images, _ in batches(last_step=10)]
    assert (np.stack(twice) != np.stack(never)).any()  # two flips by the same numbers would cancel


def test_random_numbers_differ_between_steps_and_images():
    one = ArraySplit(np.repeat(SPLIT.images[:1], 23, axis=0), SPLIT.labels)
    steps = make_pipeline(one, 4, augment=[flip_horizontal()], last_step=20).as_numpy_iterator()
    flipped = [tuple((images != one.images[:4]).any(axis=(1, 2, 3))) for images, _ in steps]
    assert len(set(flipped)) > 5
    assert 20 < np.sum(flipped) < 60


def test_seed_changes_order_and_augmentation():
    assert (labels_of_epoch(0, seed=0) != labels_of_epoch(0, seed=1)).any()
    assert digest(seed=3) != digest(seed=4)


def test_no_step_is_an_empty_set():
    dataset = make_pipeline(SPLIT, 4, first_step=3, last_step=3)
    assert int(dataset.cardinality()) == len(list(dataset)) == 0


def test_batch_may_be_the_whole_split():
    [(_, labels)] = make_pipeline(SPLIT, 23, last_step=1).as_numpy_iterator()
    assert sorted(labels) == list(range(23))


def test_batch_larger_than_the_split():
    message = r"batch_size: expected at most the 23 images of the training split, got 24"
    with pytest.raises(ConfigError, match=message):
        make_pipeline(SPLIT, 24)


@pytest.mark.parametrize("make", [make_pipeline, make_evaluation_pipeline])
def test_batch_of_nothing(make):
    with pytest.raises(ConfigError, match=r"batch_size: expected at least 1, got 0"):
        make(SPLIT, 0)


@pytest.mark.parametrize(("make", "split"), [(make_pipeline, "train"), (make_evaluation_pipeline, "test")])
def test_batches_are_made_of_one_split(make, split):
    everything = Splits(SPLIT, None, None, ("a", "b"))
    for given, got in ((everything, "all of the splits"), (SPLIT.images, "ndarray")):
        message = rf"^{make.__name__}: expected one split, such as splits\.{split}, got {got}$"
        with pytest.raises(ConfigError, match=message):
            make(given, 4)


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4] * 5 + [3]), (23, [23]), (50, [23])])
def test_evaluation_scores_each_image_once_in_order(batch_size, sizes):
    dataset = make_evaluation_pipeline(SPLIT, batch_size)
    seen = list(dataset.as_numpy_iterator())
    assert [len(labels) for _, labels in seen] == sizes
    assert int(dataset.cardinality()) == len(sizes)
    np.testing.assert_array_equal(np.concatenate([images for images, _ in seen]), SPLIT.images)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in seen]), SPLIT.labels)


@pytest.mark.parametrize("wrong", [flip_horizontal, "flip_horizontal"])
def test_an_augmentation_that_was_not_made(wrong):
    with pytest.raises(ConfigError, match=r"augment: expected augmentations such as flip_horizontal\(\), got"):
        make_pipeline(SPLIT, 4, augment=[wrong])


def test_a_split_is_shown_in_a_line():
    assert repr(SPLIT) == "ArraySplit(23 images of 8x8x3)"


# --- every way in which images can be kept --------------------------------------------------------------------


KINDS = ["memory", "mapped", "files", "stream"]
EPOCHS = 6


def load_splits(folder):
    """SPLIT by kind; the stream, of three files, has other images with the same labels."""
    options = {"image_size": 8, "validation": 0, "test": 0}
    with pytest.MonkeyPatch.context() as patched, tfds_in(folder / "tfds") as tfds:
        patched.setenv("KPIPE_CACHE", str(folder / "kept"))
        define_set(tfds, "tiny_stream", {"train": range(23)}, classes=map(str, range(23)))
        assert len(prepare_set(tfds, "tiny_stream", shards=3)) == 3
        return {
            "memory": load_dataset(f"folder:{folder}/images", cache="memory", **options).train,
            "mapped": load_dataset(f"folder:{folder}/images", cache="disk", **options).train,
            "files": load_dataset(f"folder:{folder}/images", cache="none", **options).train,
            "stream": load_dataset("tfds:tiny_stream", cache="none", **options).train,
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    write_numbered(folder / "images", SPLIT.images)
    return folder


@pytest.fixture(scope="module")
def splits(folder):
    return load_splits(folder)


@pytest.fixture(params=KINDS)
def split(splits, request):
    return splits[request.param]


def steps(split, first=0, last=5 * EPOCHS, **options):
    return list(make_pipeline(split, 4, first_step=first, last_step=last, **options).as_numpy_iterator())


def labels_of(found):
    return [labels.tolist() for _, labels in found]


def test_splits_are_of_their_kinds(splits):
    assert [type(split) for split in splits.values()] == [ArraySplit, ArraySplit, FileSplit, RecordSplit]
    assert [splits[kind].kept_pixels.is_mapped for kind in ("memory", "mapped")] == [False, True]
    assert [repr(splits[kind]) for kind in ("mapped", "files", "stream")] == [
        "ArraySplit(23 images of 8x8x3)",
        "FileSplit(23 images of 8x8x3)",
        "RecordSplit(23 images of 8x8x3)",
    ]


@pytest.mark.slow
def test_every_kind_resumes_from_any_step_as_if_uninterrupted(split):
    augment = [flip_horizontal()]
    whole = steps(split, augment=augment)
    for first in np.random.default_rng(len(repr(split))).integers(0, 5 * EPOCHS, 13).tolist():  # 52 over the kinds
        assert_same_batches(steps(split, first, first + 1, augment=augment), whole[first : first + 1])


def digests(folder):
    return [digest(split) for split in load_splits(folder).values()]


@pytest.mark.slow
def test_another_process_sees_the_same_batches(splits, folder):
    script = (
        "import pathlib, sys; sys.path[:] = eval(sys.argv[1]); "
        "from test_pipeline import digests; print(digests(pathlib.Path(sys.argv[2])))"
    )
    arguments = [sys.executable, "-c", script, repr([str(Path(__file__).parent), *sys.path]), str(folder)]
    result = subprocess.run(arguments, capture_output=True, text=True)
    expected = [digest(split) for split in splits.values()]
    assert result.stdout.splitlines()[-1:] == [repr(expected)], result.stderr
    assert expected[:3] == [digest()] * 3


def test_every_kind_shows_an_image_at_most_once_an_epoch_and_leaves_out_others(split):
    dataset = make_pipeline(split, 4, last_step=5 * EPOCHS)
    labels = [labels for _, labels in dataset.as_numpy_iterator()]
    assert int(dataset.cardinality()) == len(labels) == 5 * EPOCHS
    epochs = np.reshape(labels, (EPOCHS, 20))
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({frozenset(set(range(23)) - set(epoch)) for epoch in epochs}) > 1
    assert len({tuple(epoch) for epoch in epochs}) == EPOCHS
    again = np.reshape([labels for _, labels in steps(split, seed=1)], (EPOCHS, 20))
    assert (epochs != again).any(axis=1).all()  # another seed: another order of each epoch


def test_every_kind_keeps_images_and_labels_together(split):
    images, labels = map(np.concatenate, zip(*make_evaluation_pipeline(split, 4).as_numpy_iterator(), strict=True))
    image_of = dict(zip(labels.tolist(), images, strict=True))
    for images, labels in steps(split, last=11):
        np.testing.assert_array_equal(images, [image_of[label] for label in labels.tolist()])


def test_evaluation_of_every_kind_scores_each_image_once(split):
    dataset = make_evaluation_pipeline(split, 4)
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    assert int(dataset.cardinality()) == 6
    assert [len(each) for each in labels] == [4] * 5 + [3]
    assert sorted(np.concatenate(labels)) == list(range(23))
    seen = np.concatenate(list(iterate_images(split)))
    np.testing.assert_array_equal(seen, np.concatenate(images))
    np.testing.assert_array_equal(seen[:, 1:6, 1:6], np.concatenate(list(iterate_images(split, 5))))


def test_kept_and_read_images_give_the_same_batches(splits):
    options = {"last": 11, "augment": (random_crop(), flip_horizontal(), mixup()), "image_size": 6, "classes": 23}
    memory, mapped, files = (steps(splits[kind], **options) for kind in ("memory", "mapped", "files"))
    assert_same_batches(mapped, memory)
    assert_same_batches(files, memory)


def test_a_mapped_split_gives_the_same_resampled_batches(splits):
    options = {"last": 11, "augment": [random_resized_crop()], "image_size": 6}
    assert_same_batches(steps(splits["mapped"], **options), steps(splits["memory"], **options))


def together(by_worker):
    """Return the global batches: the rows of all workers in their order."""
    return [
        tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        for batches in zip(*by_worker, strict=True)
    ]


@pytest.mark.parametrize(
    ("kind", "crop"),
    [
        ("memory", random_crop()),
        pytest.param("files", random_resized_crop(), marks=pytest.mark.slow),
        pytest.param("stream", random_crop(), marks=pytest.mark.slow),
    ],
)
def test_workers_have_their_rows_of_the_global_batch(splits, kind, crop):
    options = {"augment": (crop, flip_horizontal(), cutmix()), "classes": 23, "image_size": 6}
    whole = steps(splits[kind], 3, 8, **options)
    assert_same_batches(together([steps(splits[kind], 3, 8, worker=i, workers=2, **options) for i in (0, 1)]), whole)


@pytest.mark.slow
def test_workers_of_one_row_each(split):
    whole = labels_of(steps(split, 3, 5))
    assert [labels_of(steps(split, 3, 5, worker=worker, workers=4)) for worker in range(4)] == [
        [labels[worker : worker + 1] for labels in whole] for worker in range(4)
    ]


@pytest.mark.parametrize("mix", [mixup(), cutmix()])
def test_a_worker_with_an_odd_number_of_images_to_mix(mix):
    message = rf"{mix.name}: expected an even number of images a worker, which are mixed in pairs, got 3"
    with pytest.raises(ConfigError, match=message):
        make_pipeline(SPLIT, 6, augment=[mix], classes=23, workers=2)
    alone = make_pipeline(SPLIT, 23, augment=[mix], classes=23, last_step=1)  # of one worker it may be odd
    [(_, labels)] = alone.as_numpy_iterator()
    assert (labels.dtype, labels.shape) == (np.float32, (23, 23))


def test_mixing_without_the_number_of_classes():
    with pytest.raises(ConfigError, match="mixup: expected the number of classes, got none"):
        make_pipeline(SPLIT, 4, augment=[mixup()])


def test_a_batch_that_the_workers_cannot_divide(split):
    with pytest.raises(ConfigError, match=r"batch_size: expected a multiple of the 3 workers, got 4"):
        make_pipeline(split, 4, workers=3)


def test_weights_are_those_of_the_labels():
    weights = np.linspace(0.5, 1.5, 23)
    for _, labels, sample_weights in batches(last_step=6, class_weights=weights):
        assert sample_weights.dtype == np.float32
        np.testing.assert_array_equal(sample_weights, weights.astype(np.float32)[labels])


def test_a_mixed_image_has_the_mean_weight_of_its_classes():
    split = ArraySplit(
        np.random.default_rng(6).integers(0, 256, (12, 8, 8, 3), np.uint8), np.arange(12, dtype=np.int32) % 2
    )
    weights = np.array([0.5, 3.0], np.float32)
    batches = make_pipeline(split, 4, augment=[mixup(2.0)], classes=2, class_weights=weights, last_step=6)
    for _, labels, found in batches.as_numpy_iterator():
        np.testing.assert_allclose(found, labels @ weights, rtol=1e-6)
    for _, labels, found in make_pipeline(split, 4, class_weights=weights, last_step=3).as_numpy_iterator():
        np.testing.assert_array_equal(found, weights[labels])
