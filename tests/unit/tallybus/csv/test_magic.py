"""Files that are no CSV text are named, with what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile

import pytest

from tallybus.csv.importing import parse_csv
from tallybus.csv.text import MalformedCsv
from tests.unit.tallybus.csv.files import HEADER


def zipped(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), text)
    return out.getvalue()


PACKED = {
    "gzip": (gzip.compress(HEADER.encode()), "gunzip -c my.csv | tallybus import -"),
    "bzip2": (bz2.compress(HEADER.encode()), "bunzip2 -c my.csv | tallybus import -"),
    "xz": (lzma.compress(HEADER.encode()), "xz -dc my.csv | tallybus import -"),
    "zst": (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd -dc my.csv | tallybus import -"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(20), "lz4 -dc my.csv | tallybus import -"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "7z x -so my.csv | tallybus import -"),
    "zip": (zipped(rows_dot_csv=HEADER), "unzip -p my.csv | tallybus import -"),
    "xlsx": (zipped(**{"[Content_Types]_dot_xml": "<x/>"}), "an Excel workbook (xlsx); save"),
    "xlsx, another": (zipped(xl__workbook_dot_xml="<x/>"), "an Excel workbook (xlsx); save"),
    "ods": (
        zipped(mimetype="application/vnd.oasis.opendocument.spreadsheet"),
        "a LibreOffice document (ods); save",
    ),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "an Excel workbook (xls); save"),
    "parquet": (b"PAR1\x15\x04" + bytes(99), "a Parquet file; export it as CSV"),
    "utf-16": (HEADER.encode("utf-16"), "iconv -f UTF-16 -t UTF-8 my.csv | tallybus import -"),
    "utf-16-le": (HEADER.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 my.csv |"),
    "utf-16-be": (HEADER.encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8 my.csv |"),
    "utf-32": (HEADER.encode("utf-32"), "iconv -f UTF-32 -t UTF-8 my.csv |"),
    "latin-1": (
        ("kind,account,amount,städtchen\n").encode("latin-1"),
        "iconv -f WINDOWS-1252 -t UTF-8 my.csv | tallybus import -",
    ),
}


@pytest.mark.parametrize("what", PACKED)
@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_what_is_no_csv_text_is_named_with_what_to_do(what: str, block: int) -> None:
    data, words = PACKED[what]
    with pytest.raises(MalformedCsv) as caught:
        parse_csv((data[at : at + block] for at in range(0, len(data), block)), name="my.csv")
    assert words in caught.value.reason
    assert caught.value.line == 1
