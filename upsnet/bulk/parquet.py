"""A block as a Parquet file: a row a photo, those that were left out too, with the reason in `error`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType
from typing import IO, Any

from upsnet import DISTRIBUTION, storage
from upsnet.bulk.plan import Plan
from upsnet.bulk.row import Failure, Row, Summary, naming_damage
from upsnet.errors import InputError, first_line

ROWS = 64  # that are in memory, and a row group
KEY = b"upsnet"
CRC32 = "crc32"  # the column with the rows' own


class ParquetWriter:
    def __init__(self, stream: IO[bytes], plan: Plan, number: int) -> None:
        self._pa = pyarrow()
        import pyarrow.parquet as parquet

        self._plan, self._number = plan, number
        head = {"block": number, "photos": plan.photos_in(number), "model_digest": plan.model_digest}
        about = {KEY: json.dumps(head | {"model": plan.model, "categories": plan.categories})}
        self._schema = _schema(self._pa).with_metadata(about)
        # PNGs are compressed; the columns beside them are small
        self._writer = parquet.ParquetWriter(
            stream, self._schema, compression={"png": "NONE"}, write_page_checksum=True
        )
        self._rows: list[dict[str, Any]] = []

    def add(self, row: Row) -> None:
        row = row._replace(photo=_text(row.photo), error=_text(row.error))
        none = ("height", "width", "png", "segments") if row.error else ("error",)
        self._rows.append(row._asdict() | dict.fromkeys(none) | {CRC32: row.crc32})
        if len(self._rows) == ROWS:
            self._flush()

    def end(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._pa.Table.from_pylist(self._rows, self._schema))
            self._rows = []


def read_summary(place: str) -> Summary:
    """Of a file behind a URL nothing but the columns that tell. Raises InputError where it is no block's file."""
    with naming_damage(place, pyarrow().ArrowException), storage.reading_file(place) as stream:
        file = _opened(stream)
        head = json.loads(file.schema_arrow.metadata[KEY])
        rows = file.read(columns=[*Failure._fields, CRC32]).to_pylist()
        left_out = [_left_out(row) for row in rows if row["error"] is not None]
        return Summary(head["block"], len(rows), head["model_digest"], left_out)


def _left_out(row: dict[str, Any]) -> Failure:
    crc32 = row.pop(CRC32)
    Row(**row).checked(crc32)
    return Failure(**row)


def read_rows(place: str) -> Iterator[Row]:
    """Those that were predicted, each of them as it was written. Raises InputError."""
    with naming_damage(place, pyarrow().ArrowException), storage.reading_file(place) as stream:
        for batch in _opened(stream).iter_batches(ROWS):
            for row in batch.to_pylist():
                if row["error"] is None:
                    crc32 = row.pop(CRC32)
                    yield Row(**row | {"error": "", "segments": tuple(row["segments"])}).checked(crc32)


def pyarrow() -> ModuleType:
    """InputError, with the cure, where it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        cure = f"pip install '{DISTRIBUTION}[parquet]', or --format tar"
        raise InputError(f"Parquet needs the package pyarrow ({first_line(error)}): {cure}") from None
    return pyarrow


def _opened(stream: IO[bytes]) -> Any:  # pyarrow has no types
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True)


def _schema(pa: Any) -> Any:
    segment = {
        "id": pa.int32(),
        "category_id": pa.int64(),
        "area": pa.int64(),
        "bbox": pa.list_(pa.int32()),
        "score": pa.float64(),
        "iscrowd": pa.int8(),
    }
    columns = {
        "image_id": pa.int64(),
        "name": pa.string(),
        "photo": pa.string(),
        "error": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "png": pa.binary(),
        "segments": pa.list_(pa.struct(segment)),
        CRC32: pa.int64(),
    }
    return pa.schema(columns)


def _text(text: str) -> str:
    """What a file's name holds besides text is written escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
