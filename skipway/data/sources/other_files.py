"""Files that are not read as images: what they are, by suffix, and how to use them."""

import os
from collections import Counter
from collections.abc import Iterable

from skipway.data.sources.image_formats import NOT_READ
from skipway.errors import printable
from skipway.utils.format_text import count_of, join_names

__all__ = ["ARCHIVES", "describe_files", "is_known", "reason_of_kind", "suffix_of"]

_MAX_KINDS = 5
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# What a file is -> its suffixes. The text completes "10 .mp4 files: ...".
_KINDS = {
    NOT_READ[".mp4"]: ".m4v .wmv .flv .3gp .mts",
    NOT_READ[".cr2"]: ".crw .nrw .srf .sr2 .pef .srw .x3f .3fr .erf .kdc .mrw .raw",
    NOT_READ[".svg"]: ".ai .xcf .cdr .sketch .fig .djvu",
    NOT_READ[".nii"]: ".nii.gz .mha .mhd .nrrd .nhdr .svs .ndpi .mrxs .scn .vms .czi .lif .nd2 .oib .oif .vsi .ims",
    "arrays or objects of Python, save one image per .npy file": ".hdf5 .pkl .pickle .pt .pth .zarr",
    "archives, unpack them or pass one by its name": " ".join((*ARCHIVES, ".tar.zst")),
    "archives, unpack them": ".rar .7z .gz .bz2 .xz .zst .lzma .cab .iso .dmg",
    "TFRecord files, convert them to images in class folders": ".tfrecord .tfrecords .tfrec",
    "incomplete downloads": ".crdownload .part .partial .download .aria2",
    "sidecar files": ".xmp .aae .thm .pp3 .dop .on1 .cls .lnk .url .ini .db",
    "tables": ".csv .tsv .tab .parquet .xlsx .xls .ods .arrow .feather .jsonl .ndjson .sqlite",
    "annotations or metadata": ".json .xml .yaml .yml .toml .names .mtl .prj .tfw .jgw .pgw .wld .geojson .shp .kml",
    "text": ".txt .md .rst .log .html .htm .rtf .doc .docx .odt .tex .bib .cff .license",
    "audio": ".wav .mp3 .flac .ogg .m4a .aac .wma",
    "code": ".py .ipynb .m .r .js .ts .c .cpp .h .hpp .java .sh .bat .ps1 .go .rs .pyc",
    "programs": ".exe .dll .so .dylib .msi .apk .deb .rpm",
    "models": ".safetensors .onnx .ckpt .tflite .pb .keras",
    "checksums": ".md5 .sha1 .sha256 .sha512 .sig .asc .torrent",
}
_KIND_OF = dict(NOT_READ)
for _kind, _suffixes in _KINDS.items():
    _KIND_OF |= dict.fromkeys(_suffixes.split(), _kind)
_DOUBLE = tuple(suffix for suffix in _KIND_OF if suffix.count(".") == 2)


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in lower case, with both parts of names such as "a.tar.gz".

    >>> suffix_of("a.PNG"), suffix_of("b.tar.gz"), suffix_of("README")
    ('.png', '.tar.gz', '')
    """
    lower = name.lower()
    double = next((suffix for suffix in _DOUBLE if lower.endswith(suffix)), None)
    return double or os.path.splitext(lower)[1]


def is_known(name: str) -> bool:
    """Return True if the suffix of a file name is that of a file that is not an image."""
    return suffix_of(name) in _KIND_OF


def reason_of_kind(name: str) -> str:
    """Return what a file is that is not read as an image, and how to use it, by its suffix.

    >>> reason_of_kind("clip.mp4")
    'video: save its frames as images'
    """
    return _KIND_OF.get(suffix_of(name), "no known image format")


def describe_files(names: Iterable[str]) -> str:
    """Describe files that are not read as images: their numbers by suffix, each with the reason; "" for no files.

    >>> describe_files(["a.mp4", "b.md", "LICENSE"])
    '1 .mp4 file (video: save its frames as images), 1 .md file (text), 1 file without suffix (no known image format)'
    """
    suffixes = Counter(map(suffix_of, names))
    parts = [f"{_counted(suffix, count)} ({reason_of_kind(f'x{suffix}')})" for suffix, count in suffixes.most_common()]
    return join_names(parts, limit=_MAX_KINDS)


def _counted(suffix: str, count: int) -> str:
    return count_of(count, f"{printable(suffix)} file") if suffix else f"{count_of(count, 'file')} without suffix"
