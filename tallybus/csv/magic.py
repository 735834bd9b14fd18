"""What a file is that is no CSV text, told by its first bytes, and how it becomes one.

Sans-IO. `name` is how the user calls the file, as a shell takes it.
"""

from __future__ import annotations

from typing import Final

HEAD_BYTES: Final = 64
"""What has to be seen of a file."""

_PACKED: Final = (
    (b"\x1f\x8b", "a gzip file", "gunzip -c {name}"),
    (b"\x1f\x9d", "a file of compress (.Z)", "gunzip -c {name}"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "zstd -dc {name}"),
    (b"\xfd7zXZ\0", "an xz file", "xz -dc {name}"),
    (b"\x04\x22\x4d\x18", "an lz4 file", "lz4 -dc {name}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x -so {name}"),
)
_BZIP2: Final = (b"BZh", b"1AY&SY")
_DOCUMENTS: Final = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook (xls)"),
    (b"PAR1\x15", "a Parquet file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"%PDF-", "a PDF document"),
)
_ZIP: Final = b"PK\x03\x04"
_ZIP_NAME_AT: Final = 30
_XLSX_NAMES: Final = (b"[Content_Types]", b"_rels/", b"xl/", b"docProps/")
_SAVE: Final = "save the sheet as CSV in UTF-8, and import that"


def foreign(head: bytes, name: str) -> str | None:
    """Why a file that begins with `head` (its first `HEAD_BYTES`, or all of it) cannot be read, and
    what to do; None: it may be text."""
    for magic, what, command in _PACKED:
        if head.startswith(magic):
            return _through(what, command, name)
    if head.startswith(_BZIP2[0]) and head[4:10] == _BZIP2[1]:
        return _through("a bzip2 file", "bunzip2 -c {name}", name)
    if head.startswith(_ZIP):
        return _zip(head[_ZIP_NAME_AT:], name)
    for magic, what in _DOCUMENTS:
        if head.startswith(magic):
            return f"this is {what}; {_SAVE if 'Excel' in what else 'export it as CSV'}"
    encoding = _wide_encoding(head)
    if encoding is not None:
        return (
            f"the file is {encoding} text; save it as UTF-8, or convert it on the way: "
            f"iconv -f {encoding} -t UTF-8 {name} | tallybus import -"
        )
    return None


def not_utf8(name: str) -> str:
    """What to do about bytes that are not UTF-8."""
    return (
        "if it is text of another encoding, save it as UTF-8, or convert it on the way: "
        f"iconv -f WINDOWS-1252 -t UTF-8 {name} | tallybus import -"
    )


def _through(what: str, command: str, name: str) -> str:
    return f"this is {what}; unpack it on the way: {command.format(name=name)} | tallybus import -"


def _zip(first_name: bytes, name: str) -> str:
    if first_name.startswith(_XLSX_NAMES):
        return f"this is an Excel workbook (xlsx); {_SAVE}"
    if first_name.startswith(b"mimetypeapplication/vnd.oasis.open"):
        return f"this is a LibreOffice document (ods); {_SAVE}"
    return _through("a zip archive", "unzip -p {name}", name)


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by a byte order mark or by its zeros."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    even, odd = head[0:16:2], head[1:16:2]
    if len(odd) >= 4:
        if not any(odd) and all(even):
            return "UTF-16LE"
        if not any(even) and all(odd):
            return "UTF-16BE"
    return None
