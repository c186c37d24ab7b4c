"""Text files of labels, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

from upsnet.errors import InputError

MOST_BYTES = 64 << 20


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """UTF-8 or UTF-16, with or without a mark at its start. InputError names the file that is another thing, that is
    not there, or that is larger than a text of its kind."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > most_bytes:
        raise InputError(f"{path}: over {most_bytes} bytes, which no text of its kind has")
    if content.startswith(b"PK\x03\x04"):
        raise InputError(f"{path}: a zip archive; unpack it")
    coding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(coding)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text in UTF-8; save it as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path}: not a text: it holds zero bytes")
    return text
