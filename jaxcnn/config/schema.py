"""The schema of a run: small dataclasses of plain data, one comment a field, with its unit.

Nothing derived is stored (training/build.py computes steps and rates from the final config), so an override leaves
nothing stale.
"""

import math
from dataclasses import dataclass, field
from typing import Any


def _among(*values: str) -> dict[str, Any]:
    return {"choices": values}


def _range(low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf) -> dict[str, Any]:
    return {"low": low, "high": high, "above": above}


LARGEST_INTEGER = 2**32 - 1  # of any field
MOST_STEPS = 10**8  # of a run: its schedule is worked out as a whole


@dataclass(slots=True)
class DataConfig:
    """Which data, how they are split, and where they live."""

    name: str = "digits"  # a key of choices.SOURCES and what it takes, folder:PATH, tfds:NAME[/CONFIG][:VERSION]
    dir: str | None = None  # where prepared sets lie; none: $TFDS_DATA_DIR, else ~/tensorflow_datasets; for a PATH: .
    train_split: str = "train"  # what to learn from, in TFDS's syntax: train[:80%], train+extra
    validation_split: str | None = None  # the same; none: the source's own, else a part held out of train
    test_split: str | None = None  # the same; none: the source's own, else a tenth held out of train
    validation_fraction: float = field(default=0.1, metadata=_range(0, 0.5))  # held out of train; 0: no validation
    fold: str | None = None  # 2/5: validation is the second of five folds of train_split; test stays as it is
    stratify: bool = True  # what is held out has each class in proportion; false: whatever comes
    split_seed: int = field(default=0, metadata=_range(0, 2**32 - 1))  # which are held out; not varied with `seed`
    exclude: str | None = None  # text file of record identifiers to leave out, one a line, before all else
    classes: tuple[int | str, ...] = ()  # only these, names or numbers, numbered anew in this order; empty: all
    examples_per_class: int | None = field(default=None, metadata=_range(1))  # so many of train, drawn by split_seed
    sampling: str = field(default="uniform", metadata=_among("uniform", "balanced"))  # balanced: classes equally often
    image_size: int | None = field(default=None, metadata=_range(1, 2**13))  # pixels; none: as stored
    channels: int | None = field(default=None, metadata=_range(1, 3))  # 1: grey, 3: RGB; none: as stored
    expected_examples: int | None = field(default=None, metadata=_range(1))  # of train_split; checked when opened, and
    expected_classes: int | None = field(default=None, metadata=_range(2))  # what --dry_run assumes of an absent set
    mean: tuple[float, ...] | None = None  # per channel, in 0..1; none: measured from train
    std: tuple[float, ...] | None = field(default=None, metadata=_range(above=0))  # the same
    resident: bool | None = None  # decoded set lives on the device; none: when it takes at most 2 GiB
    cache: bool = True  # keep the decoded set under ~/.cache/jaxcnn (or $JAXCNN_CACHE_DIR)
    damaged: str = field(default="error", metadata=_among("error", "skip"))  # records: end, or train on others, count
    num_workers: int | None = field(default=None, metadata=_range(0))  # decoding processes; 0: threads; none: by cores
    prefetch_batches: int = field(default=4, metadata=_range(1))  # decoded ahead when streaming; at least one a worker


@dataclass(slots=True)
class TableConfig:
    """How a table is read, for task=tabular: what is learned of it, and from which columns."""

    target: str | None = None  # the column that is learned; none: the last
    kind: str = field(default="auto", metadata=_among("auto", "classification", "regression"))  # auto: by the target
    drop: tuple[str, ...] = ()  # columns that are left out
    encode: bool = False  # text columns become a column for each of train's values; false: they are an error
    missing: str = field(default="error", metadata=_among("error", "mean", "drop"))  # mean: train's; drop: the row


@dataclass(slots=True)
class TextConfig:
    """How texts are read, for task=text, and what their words begin as."""

    column: str | None = None  # that holds the text; none: text, of a set of TFDS its supervised pair's
    label: str = "label"  # csv: the column that holds the class
    level: str = field(default="word", metadata=_among("word", "character", "byte"))  # what a token is
    vocabulary_size: int | None = field(default=20_000, metadata=_range(4, 2**20))  # the most frequent of train's
    minimum_count: int = field(default=1, metadata=_range(1))  # what is rarer in train is unknown
    max_length: int = field(default=256, metadata=_range(1, 2**20))  # tokens; longer texts are cut, and that is said
    embedding_size: int | None = field(default=None, metadata=_range(1, 2**14))  # none: that of embeddings, else 128
    embeddings: str | None = None  # FILE of word vectors, word2vec's (text or .bin) or GloVe's; none: drawn
    channels: str = field(default="tuned", metadata=_among("tuned", "static", "both"))  # static: the vectors stay


@dataclass(slots=True)
class LanguageConfig:
    """How texts are read, for task=language: train first, validation after it, test at the end."""

    level: str = field(default="character", metadata=_among("character", "word", "byte"))  # what a token is
    vocabulary_size: int | None = field(default=None, metadata=_range(3, 2**20))  # the most frequent of train's tokens
    minimum_count: int = field(default=1, metadata=_range(1))  # what is rarer in train is unknown
    length: int = field(default=128, metadata=_range(2, 2**16))  # tokens of a window: of truncated backpropagation
    eval_length: int | None = field(default=None, metadata=_range(2, 2**20))  # of windows in evaluation; none: length
    context: int = field(default=32, metadata=_range(0, 2**19))  # of them before the first that counts in evaluation
    test_fraction: float = field(default=0.1, metadata=_range(above=0, high=0.5))  # of all tokens, the last
    end: str = field(default="file", metadata=_among("file", "line"))  # what an end token stands behind


@dataclass(slots=True)
class ForecastConfig:
    """Which series are forecast, from how much of their past, for task=forecasting."""

    time: str | None = None  # the column of stamps; none: the first
    series: str | None = None  # the column that names the series of a long table; none: each column of values is one
    values: tuple[str, ...] = ()  # the columns of values; empty: all others
    missing: str = field(default="error", metadata=_among("error", "previous"))  # previous: filled with the one before
    length: int = field(default=48, metadata=_range(1, 2**16))  # steps of the past that a forecast is made of
    horizon: int = field(default=24, metadata=_range(1, 2**14))  # steps that are forecast
    least: int | None = field(default=None, metadata=_range(1))  # of the past; what lacks is padded; none: length
    season: int | None = field(default=None, metadata=_range(1))  # steps after which it is alike; none: by the stamps
    calendar: bool = False  # the time of the day, week and year are inputs
    centre: str = field(default="mean", metadata=_among("none", "mean", "last"))  # of a window's past, subtracted
    scale: str = field(default="std", metadata=_among("none", "mean_absolute", "std"))  # the same, divided by
    origins: int | None = field(default=None, metadata=_range(1))  # windows a series of test, of validation; none: 10 %
    stride: int | None = field(default=None, metadata=_range(1))  # steps between two of them; none: horizon
    recursive: bool = False  # forecast_*: a step at a time, each made of the one before; false: all at once


@dataclass(slots=True)
class SegmentationConfig:
    """What the values of masks mean, for task=segmentation."""

    classes: tuple[str, ...] = ()  # names of the values 0, 1, …; empty: by the set's classes.txt, else by its masks
    void: int = field(default=255, metadata=_range(0, 65535))  # a value of pixels that count nowhere


@dataclass(slots=True)
class AugmentConfig:
    """What the images go through in training, on the device and in this order. 0 and false turn a piece off."""

    alternating_flip: bool = False  # mirror left-right every other epoch, each example's first by a coin
    flip: bool = False  # mirror left-right with probability 1/2
    crop_padding: int = field(default=0, metadata=_range(0))  # pixels of reflected border, then a random crop back
    random_resized_crop: bool = False  # a random box, enlarged; streams (at decode) unless data.resident=true
    crop_area: tuple[float, ...] = field(default=(0.08, 1.0), metadata=_range(above=0, high=1))  # the box's: low, high
    crop_aspect: tuple[float, ...] = field(default=(3 / 4, 4 / 3), metadata=_range(above=0))  # its width / height
    rotation: float = field(default=0.0, metadata=_range(0, 180))  # degrees, at most so many each way
    shift: float = field(default=0.0, metadata=_range(0, 1))  # fraction of height and of width, each way
    shear: float = field(default=0.0, metadata=_range(0, 80))  # degrees, each way
    zoom: float = field(default=0.0, metadata=_range(0, 0.95))  # fraction: by a factor in [1 - zoom, 1 + zoom]
    fill: str = field(default="constant", metadata=_among("constant", "nearest", "reflect", "wrap"))  # of these four
    randaugment_ops: int = field(default=0, metadata=_range(0, 14))  # operations one after the other: the paper's N
    randaugment_magnitude: int = field(default=9, metadata=_range(0, 30))  # of all of them, on torchvision's scale
    trivial_augment: bool = False  # one operation of any magnitude, TrivialAugment's wide ranges
    brightness: float = field(default=0.0, metadata=_range(0))  # by a factor in [max(0, 1 - this), 1 + this]
    contrast: float = field(default=0.0, metadata=_range(0))  # the same
    saturation: float = field(default=0.0, metadata=_range(0))  # the same
    hue: float = field(default=0.0, metadata=_range(0, 0.5))  # fraction of the circle, each way
    grayscale: float = field(default=0.0, metadata=_range(0, 1))  # probability
    blur: float = field(default=0.0, metadata=_range(0, 16))  # largest sigma in pixels; drawn between 0 and this
    noise: float = field(default=0.0, metadata=_range(0, 1))  # sigma, a fraction of the levels' range
    cutout: int = field(default=0, metadata=_range(0))  # side in pixels of a random square set to the mean
    random_erasing: float = field(default=0.0, metadata=_range(0, 1))  # probability of a box of 2-40 % set to the mean
    mixup: float = field(default=0.0, metadata=_range(0))  # alpha; partners are neighbours in the batch
    cutmix: float = field(default=0.0, metadata=_range(0))  # alpha; with mixup too, each example by one of the two


@dataclass(slots=True)
class ModelConfig:
    """Which model, and the options that it takes."""

    name: str = "cnn"  # a key of jaxcnn.models.MODELS
    stem: str | None = field(default=None, metadata=_among("small", "imagenet"))  # none: imagenet's from 64 pixels on
    width: float | None = field(
        default=None, metadata=_range(above=0, high=100)
    )  # times the paper's channels; none: its
    depth: float | None = field(default=None, metadata=_range(above=0, high=100))  # times the paper's blocks; none: its
    dropout_rate: float | None = field(default=None, metadata=_range(0, 0.95))  # none: the model's
    stochastic_depth: float | None = field(default=None, metadata=_range(0, 0.95))  # of the last block, linear from 0
    features: int | None = field(default=None, metadata=_range(1, 2**14))  # of sequence models: units of a layer
    layers: int | None = field(default=None, metadata=_range(1, 100))  # of sequence models; none: the model's
    bidirectional: bool = False  # text_lstm, text_gru: read in both directions
    layer_norm: bool = False  # in the cells of recurrent models
    sizes: tuple[int, ...] | None = field(default=None, metadata=_range(1, 100))  # text_cnn: words that a filter sees
    tied: bool = False  # of language models: the head's kernel is the embedding
    channels: tuple[str, ...] = ()  # layers of other widths than the paper's: stage1_block1/conv1=8; as pruning has it
    hidden: tuple[int, ...] | None = field(
        default=None, metadata=_range(1, 2**16)
    )  # mlp, forecasters: units of each hidden layer, tcn: channels of each block
    activation: str | None = None  # a key of layers.blocks.ACTIVATIONS; none: the paper's
    initializer: str | None = None  # of all kernels: a key of layers.initializers.INITIALIZERS; none: the paper's
    norm: str | None = field(default=None, metadata=_among("batch", "group", "layer", "none"))  # none: the paper's
    dtype: str = field(default="float32", metadata=_among("float32", "bfloat16"))  # of compute; params stay float32
    # On CPUs, what computes convolutions: see layers/conv.py. They differ in rounding and speed.
    convolution: str = field(default="auto", metadata=_among("auto", "onednn", "xla", "products"))
    remat: bool = False  # keep only what stands between blocks, compute the rest again: less memory, more time
    batch_norm: str = field(default="global", metadata=_among("global", "per_device"))  # the batch it normalises over
    batch_norm_momentum: float = field(default=0.9, metadata=_range(0, 1))  # of the running statistics


@dataclass(slots=True)
class LossConfig:
    """What is minimised."""

    name: str = "cross_entropy"  # a key of choices.LOSSES
    label_smoothing: float = field(default=0.0, metadata=_range(0, 0.99))
    focal_gamma: float = field(default=2.0, metadata=_range(0))  # Lin et al. 2017, eq. 4
    huber_delta: float = field(default=1.0, metadata=_range(above=0))  # errors beyond it count linearly
    tversky_alpha: float = field(default=0.3, metadata=_range(0, 1))  # of false positives; the rest of false negatives
    # pinball: of the steps of a series; they increase, and 0.5, which is the forecast, is among them
    quantiles: tuple[float, ...] = field(default=(0.1, 0.5, 0.9), metadata=_range(above=0, high=0.999))
    # Weights multiply an example's loss in training; the loss of validation and test is without them.
    class_weights: str = field(default="none", metadata=_among("none", "balanced"))  # balanced: of mean 1 over train
    class_weight_values: tuple[float, ...] = field(default=(), metadata=_range(0))  # one a class, taken as they are


@dataclass(slots=True)
class DistillConfig:
    """A teacher, whose answers are learned beside the labels: Hinton et al. 2015."""

    teacher: str | None = None  # a run's folder, or weights as init_from names them; none: no teacher
    model: str | None = None  # of weights: a key of jaxcnn.models.MODELS; a run's folder says it itself
    mean: tuple[float, ...] | None = None  # of weights: what their images were normalised by; none: as this run's are
    std: tuple[float, ...] | None = field(default=None, metadata=_range(above=0))  # the same
    temperature: float = field(default=4.0, metadata=_range(above=0, high=100))  # that both answers are softened by
    alpha: float = field(default=0.9, metadata=_range(above=0, high=1))  # the teacher's part of the loss; 1: no labels


@dataclass(slots=True)
class GroupsConfig:
    """Options of airbench_sgd and airbench_muon alone, of their groups of parameters: training/airbench_optim.py.

    Rates are multiples of learning_rate. Each group has its weight_decay divided by its rate: all of them shrink alike.
    """

    norm_bias_rate: float = field(default=1.0, metadata=_range(above=0))  # biases of batch norms
    head_rate: float = field(default=1.0, metadata=_range(above=0))
    whiten_bias_rate: float = field(default=1.0, metadata=_range(above=0))
    whiten_bias_steps: int = field(default=1, metadata=_range(1))  # then it is frozen; airbench_muon: falling to 0
    muon_rest_momentum: float = field(default=0.85, metadata=_range(0, 0.9999))  # airbench_muon: of all but its kernels


@dataclass(slots=True)
class MultilabelConfig:
    """How sets of labels are written, and when a label is said to be there."""

    separator: str = "|"  # between the labels of an image: beach|sea; the name "-" is of an image without labels
    thresholds: tuple[float, ...] = field(default=(0.5,), metadata=_range(above=0, high=1))  # one, or one a label


@dataclass(slots=True)
class OptimizerConfig:
    """How the weights move; its links, in order, are in optim.py."""

    name: str = "nesterov"  # a key of choices.OPTIMIZERS
    learning_rate: float = field(default=0.1, metadata=_range(above=0))  # at the schedule's peak
    reference_batch_size: int | None = field(default=None, metadata=_range(1))  # the rate is scaled by batch_size/this
    momentum: float = field(default=0.9, metadata=_range(0, 0.9999))  # momentum, nesterov, rmsprop (0: none), muons
    beta1: float = field(default=0.9, metadata=_range(0, 0.9999))  # adam, adamw, lamb, lion; muon's adam
    beta2: float | None = field(default=None, metadata=_range(0, 0.99999))  # none: lion 0.99, rmsprop 0.9, else 0.999
    epsilon: float = field(default=1e-8, metadata=_range(above=0))
    weight_decay: float = field(default=0.0, metadata=_range(0))  # on kernels only; airbench_*: see GroupsConfig
    weight_decay_mode: str = field(
        default="auto", metadata=_among("auto", "l2", "decoupled")
    )  # auto: as the name implies
    l1: float = field(default=0.0, metadata=_range(0))  # penalty sum |w|, on kernels only
    clip_norm: float | None = field(default=None, metadata=_range(above=0))  # global norm of the gradient
    clip_value: float | None = field(default=None, metadata=_range(above=0))  # each entry of the gradient
    accumulate: int = field(default=1, metadata=_range(1))  # micro-batches a step
    ema_decay: float | None = field(default=None, metadata=_range(above=0, high=0.999999))  # none: no average kept
    lookahead_every_steps: int | None = field(
        default=None, metadata=_range(1)
    )  # none: no lookahead; it has the average
    lookahead_decay: float = field(default=0.95**5, metadata=_range(0, 1))  # of lookahead's average, at the last step
    groups: GroupsConfig = field(default_factory=GroupsConfig)


@dataclass(slots=True)
class ScheduleConfig:
    """The learning rate over the run."""

    name: str = "cosine"  # a key of choices.SCHEDULES
    warmup_epochs: float = field(
        default=0.0, metadata=_range(0)
    )  # linear, from 0; not for one_cycle, which has its own
    initial_fraction: float = field(default=0.0, metadata=_range(0, 1))  # triangle: first rate / peak rate
    final_fraction: float = field(default=0.0, metadata=_range(0, 1))  # last rate / peak rate; plateau: lowest / peak
    step_epochs: tuple[float, ...] = ()  # step: the epochs at which the rate is multiplied by step_factor
    step_factor: float = field(default=0.1, metadata=_range(above=0, high=1))
    peak_fraction: float = field(
        default=0.3, metadata=_range(above=0, high=0.99)
    )  # one_cycle, triangle: the peak's place
    # plateau: the peak's rate, until validation has not become better for a while; again and again
    plateau_evaluations: int = field(default=5, metadata=_range(1))  # so many without a better one, and the rate falls
    plateau_factor: float = field(default=0.1, metadata=_range(above=0, high=0.99))  # it is multiplied by this
    plateau_cooldown_evaluations: int = field(default=0, metadata=_range(0))  # after a fall, so many do not count
    plateau_metric: str | None = None  # none: checkpoint.best_metric
    plateau_min_delta: float = field(default=0.0, metadata=_range(0))  # better: by more than this, in the metric's unit


@dataclass(slots=True)
class FinetuneConfig:
    """Which layers train, from when, and how fast, beginning from weights that are already good: finetune.py.

    A layer is what the model's top module names (stage1_block2, head; a norm with its convolution), a stage what its
    name begins with (stage1). Depth counts layers from the head, which has 0.
    """

    frozen: tuple[str, ...] = ()  # patterns of parameters that stay as they are, e.g. 'stage1_*'; '!head': but not it
    unfreeze_epochs: tuple[float, ...] = field(default=(), metadata=_range(above=0))  # a stage each, from the head down
    layer_decay: float = field(default=1.0, metadata=_range(above=0, high=1))  # a layer's rate: times this ** depth
    head_rate: float = field(default=1.0, metadata=_range(above=0))  # the head's rate is multiplied by this


@dataclass(slots=True)
class CheckpointConfig:
    """What is saved, when, and which weights are the result."""

    every_epochs: float = field(default=1.0, metadata=_range(above=0))
    every_steps: int | None = field(default=None, metadata=_range(1))  # given: instead of every_epochs
    keep_last: int = field(default=2, metadata=_range(1))
    keep_best: int = field(default=1, metadata=_range(0))  # 0: the last weights are the result
    best_metric: str | None = None  # on validation: any metric of the task; none: the task's own, e.g. accuracy
    asynchronous: bool = True  # write while training goes on


@dataclass(slots=True)
class EarlyStopConfig:
    """When a run ends before its last step: validation has not become better for a while."""

    patience_evaluations: int | None = field(default=None, metadata=_range(1))  # without a better one; none: off
    metric: str | None = None  # none: checkpoint.best_metric
    min_delta: float = field(default=0.0, metadata=_range(0))  # better: by more than this, in the metric's unit


@dataclass(slots=True)
class TelemetryConfig:
    """What is measured of a step's inside: norms and histograms of weights, gradients, activations. telemetry.py."""

    every_steps: int | None = field(default=None, metadata=_range(0))  # 0: never; none: 100 rows a run; see build.py


@dataclass(slots=True)
class ProfileConfig:
    """What JAX's profiler records, for TensorBoard."""

    steps: str | None = None  # 10:20: from after step 10 to after step 20; none: nothing


@dataclass(slots=True)
class Config:
    """A run is a pure function of this, the data, and nothing else."""

    task: str = "classification"  # what is learned: a key of choices.TASKS
    seed: int = field(default=0, metadata=_range(0, 2**31 - 1))
    batch_size: int = field(default=128, metadata=_range(1, 2**20))  # global, over all devices
    eval_batch_size: int | None = field(
        default=None, metadata=_range(1, 2**20)
    )  # none: batch_size; rounded up to devices
    eval_tta: str = field(default="none", metadata=_among("none", "flip", "flip_translate", "shifts"))  # views averaged
    num_epochs: float = field(default=10.0, metadata=_range(above=0, high=MOST_STEPS))
    num_steps: int | None = field(default=None, metadata=_range(1, MOST_STEPS))  # given: instead of num_epochs
    eval_every_epochs: float = field(default=1.0, metadata=_range(above=0))
    log_every_steps: int = field(default=50, metadata=_range(1))
    measure_test: bool = True  # when the run ends; false: its result is measured on validation alone
    data: DataConfig = field(default_factory=DataConfig)
    table: TableConfig = field(default_factory=TableConfig)
    text: TextConfig = field(default_factory=TextConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    forecast: ForecastConfig = field(default_factory=ForecastConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    multilabel: MultilabelConfig = field(default_factory=MultilabelConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    init_from: str | None = None  # weights to begin with: FILE, a run's folder, torchvision:NAME, hf:ORGANISATION/NAME
    init_head: str = field(default="keep", metadata=_among("keep", "new"))  # new: of init_from all but the heads
    init_adapt: bool = False  # the first convolution to other channels, position embeddings to other sizes
    init_allow: tuple[str, ...] = ()  # patterns of arrays that may be missing in init_from, left over, of another shape
    parallel: str = field(default="jit", metadata=_among("jit", "pmap"))  # over a mesh, or pmap
    platform: str | None = field(default=None, metadata=_among("cpu", "gpu", "tpu"))  # none: the best there is
    num_devices: int | None = field(default=None, metadata=_range(1))  # none: all
    steps_per_call: int | None = field(default=None, metadata=_range(1))  # steps in one program; none: by platform
    metrics: tuple[str, ...] = ()  # of the task, measured beside those that it always has; those that decide are too
    tensorboard: bool = True  # scalars, histograms, the graph, hyperparameters
    tensorboard_media: bool = False  # images, PR curves, the projector, too: a second or more when the run ends
    trackers: tuple[str, ...] = ()  # wandb, mlflow: told of each row too; extras of the package
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    compilation_cache: bool = True  # compiled programs are kept under ~/.cache/jaxcnn (or $JAXCNN_CACHE_DIR)
