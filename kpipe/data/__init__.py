"""Data, from the name of a source to batches.

`load_dataset` reads a source and splits it; `make_pipeline` and `make_evaluation_pipeline` turn a split into batches.
"""

from kpipe.data.arrays import ArraySplit
from kpipe.data.augmentations.base import Augmentation, Mix
from kpipe.data.augmentations.color import color_jitter, grayscale, pca_color
from kpipe.data.augmentations.crops import (
    Crop,
    center_crop,
    random_crop,
    random_resized_crop,
    scale_jitter,
    ten_crop,
)
from kpipe.data.augmentations.geometric import (
    cutout,
    flip_horizontal,
    flip_vertical,
    pad_crop,
    rotate,
    translate,
)
from kpipe.data.augmentations.mix import cutmix, mixup
from kpipe.data.augmentations.rand_augment import rand_augment
from kpipe.data.files import FileSplit, unlabeled_files
from kpipe.data.images import Form
from kpipe.data.loading import find_source, load_dataset
from kpipe.data.pipeline import (
    count_steps_per_epoch,
    evaluation_batches,
    is_sampled,
    iterate_images,
    iterate_readable,
    make_evaluation_pipeline,
    make_pipeline,
    resize_for_evaluation,
)
from kpipe.data.reading import note_unreadable, translate_reading_errors
from kpipe.data.records import RecordSplit
from kpipe.data.splits import ProgressReporter, Source, Split, Splits, no_progress
from kpipe.data.splitting import balanced_weights
from kpipe.data.statistics import WHITENINGS, channel_statistics, mean_image, whitening
from kpipe.data.unreadable import Unreadable

__all__ = [
    "ArraySplit",
    "Augmentation",
    "Crop",
    "FileSplit",
    "Form",
    "Mix",
    "ProgressReporter",
    "RecordSplit",
    "Source",
    "Split",
    "Splits",
    "Unreadable",
    "WHITENINGS",
    "balanced_weights",
    "center_crop",
    "channel_statistics",
    "color_jitter",
    "count_steps_per_epoch",
    "cutmix",
    "cutout",
    "evaluation_batches",
    "find_source",
    "flip_horizontal",
    "flip_vertical",
    "grayscale",
    "is_sampled",
    "iterate_images",
    "iterate_readable",
    "load_dataset",
    "make_evaluation_pipeline",
    "make_pipeline",
    "mean_image",
    "mixup",
    "no_progress",
    "note_unreadable",
    "pad_crop",
    "pca_color",
    "rand_augment",
    "random_crop",
    "random_resized_crop",
    "resize_for_evaluation",
    "rotate",
    "scale_jitter",
    "ten_crop",
    "translate",
    "translate_reading_errors",
    "unlabeled_files",
    "whitening",
]
