"""Images as numpy uint8: where they come from, which belong to which split, and in what order they are read."""

from jaxcnn.data.order import DrawnGroups, batch_examples, batch_indices, stream_examples
from jaxcnn.data.records import DamagedRecordError, NotPreparedError, Source, Split, classes_of, read_or_error
from jaxcnn.data.resident import channel_statistics, example_bytes, load_arrays, load_examples, resident_bytes
from jaxcnn.data.sources import open_source, stand_in_source
from jaxcnn.data.splits import groups_of, labels_of, num_shared
from jaxcnn.data.streaming import Batches, choose_workers, evaluation_batches, measure_statistics, train_batches

__all__ = [
    "Batches",
    "DamagedRecordError",
    "DrawnGroups",
    "NotPreparedError",
    "Source",
    "Split",
    "batch_examples",
    "batch_indices",
    "channel_statistics",
    "choose_workers",
    "classes_of",
    "evaluation_batches",
    "example_bytes",
    "groups_of",
    "labels_of",
    "load_arrays",
    "load_examples",
    "measure_statistics",
    "num_shared",
    "open_source",
    "read_or_error",
    "resident_bytes",
    "stand_in_source",
    "stream_examples",
    "train_batches",
]
