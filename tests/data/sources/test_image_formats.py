import io
import os

import numpy as np
import pytest
from PIL import Image, features

from skipway.data.sources.decode import BadImage, decode
from skipway.data.sources.file_tree import DiskTree
from skipway.data.sources.image_formats import (
    FORMAT_OF_SUFFIX,
    LEFT_OUT,
    NOT_READ,
    PILLOW_FORMATS,
    SNIFF_BYTES,
    SUFFIXES,
    image_format_of,
    pillow_formats,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
# Lossless in Pillow, so that the pixels are those that were written.
LOSSLESS = {"PPM": ".ppm", "TGA": ".tga", "QOI": ".qoi", "SGI": ".sgi", "PCX": ".pcx", "DDS": ".dds"}


def encoded(form, pixels=PIXELS, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def test_every_format_of_the_installed_pillow_is_reviewed():
    Image.init()
    reviewed = {*PILLOW_FORMATS, *LEFT_OUT, *(name for suffix in SUFFIXES for name in pillow_formats(suffix))}
    assert set(Image.OPEN) <= reviewed, "review the decoder of a new format: does it run or open anything else?"
    assert not {"EPS", "WMF", "IPTC"} & {name for suffix in SUFFIXES for name in pillow_formats(suffix)}


def test_no_suffix_is_read_and_not_read():
    assert not SUFFIXES & NOT_READ.keys()
    assert {".jpg", ".avif", ".ppm", ".jp2", ".heic", ".dcm", ".npy", ".tif"} <= SUFFIXES


@pytest.mark.parametrize("form", [*LOSSLESS, "PNG", "BMP", "TIFF"])
def test_lossless_formats_keep_their_pixels(form):
    pixels = PIXELS[:12, :12]
    suffix = LOSSLESS.get(form, "")
    image = decode(encoded(form, pixels), size=len(pixels), suffix=suffix)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert "extension does not match content" not in image.notes


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000", "WEBP"])
def test_newer_formats_are_read(form):
    if not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}[form]):
        pytest.skip(f"this build of Pillow has no {form}")
    flat = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    data = encoded(form, flat)
    assert image_format_of(data[:SNIFF_BYTES]) == form
    assert np.abs(decode(data, size=16).pixels.astype(int) - flat).max() <= 8


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", None),
        (bytes(128) + b"DICM", "DICOM"),
        (b"\x93NUMPY\x01\0", "NPY"),
        (b"P5 # made by hand\n2 2\n255\n", "PPM"),
        (b"P5 is the fifth plan", None),
        (b"BMW builds cars, and more text follows", None),
        (b"GIF89 is old", None),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", None),
        (b"%PDF-1.7", None),
        (b"\xd7\xcd\xc6\x9a\0\0", None),
        (b"", None),
    ],
)
def test_content_names_the_format(data, expected):
    assert image_format_of(data) == expected


def test_files_with_odd_suffixes_are_taken_by_their_content(tmp_path):
    images = ("photo", "photo.JPG", "photo.dat", "photo.png")
    others = ("drawing.eps", "notes.TXT", "raw.dng", "table.csv")
    for name in (*images, *others):
        (tmp_path / name).write_bytes(encoded("JPEG"))
    (tmp_path / "words").write_text("just text")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # must not block
    root = DiskTree(tmp_path).root
    assert root.images == sorted(images) and set(root.others) == {*others, "words", "pipe"}


@pytest.mark.parametrize("suffix", [".eps", ".wmf", ".jpg", ".tga", ""])
def test_drawings_that_run_other_programs_are_not_opened(suffix, monkeypatch):
    from PIL import EpsImagePlugin, WmfImagePlugin

    def forbidden(*args, **options):
        raise AssertionError("opened")

    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", forbidden)
    monkeypatch.setattr(WmfImagePlugin.WmfStubImageFile, "_open", forbidden)
    drawings = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
    )
    for data in drawings:
        with pytest.raises(BadImage):
            decode(data, size=8, suffix=suffix)


def test_weak_formats_need_their_suffix():
    data = encoded("TGA")
    with pytest.raises(BadImage, match="unsupported format"):
        decode(data, size=8, suffix=".jpg")
    assert decode(data, size=8, suffix=".tga").width == 16
    assert FORMAT_OF_SUFFIX[".tga"] == "TGA"
