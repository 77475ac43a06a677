"""Converts a set that TFDS has prepared as TFRecord to ArrayRecord, which can be read at random.

Both hold the same bytes an example, so nothing is decoded; the checksums of TFRecord are verified. The TFRecord files
stay, and TFDS still reads them: `dataset_info.json` comes to name both formats, as the last act.
"""

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from jaxcnn.data.downloads import Progress
from jaxcnn.data.tfds_description import DESCRIPTION_LIMIT, open_builder
from jaxcnn.errors import RunError, UserError
from jaxcnn.files import open_regular, read_json, to_json, write_atomically
from jaxcnn.terminal import short_line


def convert(folder: Path, *, progress: Progress = lambda *_: None) -> Path:
    """Writes the ArrayRecord shards of NAME[/CONFIG]/VERSION beside its TFRecord ones; shards that are there stay."""
    try:
        splits = open_builder(folder).info.splits
        shards = [
            (Path(source), Path(target), length)
            for split in splits.values()
            for source, target, length in zip(
                split.filepaths,
                split.filename_template.replace(filetype_suffix="array_record").sharded_filepaths(split.num_shards),
                split.shard_lengths,
                strict=True,
            )
        ]
    except Exception as error:
        raise RunError(
            f"what describes the set in {folder} is damaged ({short_line(error)}); remove it and prepare the set again"
        ) from error
    missing = [source for source, *_ in shards if not source.exists()]
    if missing:
        raise RunError(f"{missing[0]} is missing; remove {folder} and prepare the set again")
    if any(source == target for source, target, _ in shards):
        raise UserError(f"the files in {folder} have names without their format: prepare the set again elsewhere")
    needed = sum(source.stat().st_size for source, target, _ in shards if not target.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"converting {folder} needs {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free; free some"
        )
    try:
        for number, (source, target, length) in enumerate(shards):
            progress(f"converting {folder} from TFRecord, files", number, len(shards))
            if not target.exists():
                _convert_shard(source, target, length)
        info_path = epath.Path(folder) / "dataset_info.json"
        info = read_json(info_path, limit=DESCRIPTION_LIMIT)
        others = set(info.get("alternativeFileFormats", [])) | {"tfrecord"}
        info |= {"fileFormat": "array_record", "alternativeFileFormats": sorted(others - {"array_record"})}
        write_atomically(info_path, to_json(info, indent=2))
    except PermissionError as error:
        raise UserError(
            f"cannot write to {folder}, where the set lies as TFRecord; copy it to a folder of yours"
        ) from error
    except OSError as error:
        raise RunError(f"converting {folder} failed ({error.strerror}); run this again once that is mended") from error
    progress(f"converting {folder} from TFRecord, files", len(shards), len(shards))
    return folder


def _convert_shard(source: Path, target: Path, length: int) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = target.with_name(f".{target.name}.partial")
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    count = 0
    for record in read_tfrecord(source):
        writer.write(record)
        count += 1
    writer.close()
    if count != length:
        raise RunError(f"{source} has {count} records, not {length}; remove {source.parent} and prepare the set again")
    partial.replace(target)


def read_tfrecord(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file. RunError when its lengths or checksums say that it is damaged.

    A record: its length (uint64), the length's checksum (uint32), its bytes, their checksum (uint32); little-endian.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        while header := file.read(12):
            (length,) = struct.unpack("<Q", header[:8].ljust(8, b"\0"))
            if len(header) == 12 and _checksum(header[:8]) == header[8:] and length <= size - file.tell():
                record, checksum = file.read(length), file.read(4)
                if len(record) == length and _checksum(record) == checksum:
                    yield record
                    continue
            raise RunError(
                f"{path} is damaged near byte {file.tell():,}; remove {path.parent} and prepare the set again"
            )


def _checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted, so that a checksum over data that holds checksums stays one."""
    import google_crc32c

    value = google_crc32c.value(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
