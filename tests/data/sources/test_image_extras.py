"""HEIC, DICOM and TIFF of several bands, which are read by extras; numpy is the oracle."""

import io
import sys

import numpy as np
import pillow_heif
import pydicom
import pytest
import tifffile
from PIL import Image

from skipway.data.sources.decode import BadImage, decode, header_of
from skipway.data.value_range import levels_of

GENERATOR = np.random.default_rng(0)


BANDS = {"photometric": "minisblack", "planarconfig": "contig"}


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def dicom(values, **tags):
    dataset = pydicom.dataset.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPClassUID, "1.2.3"
    bits = 8 * values.dtype.itemsize
    defaults = {
        "Rows": values.shape[0],
        "Columns": values.shape[1],
        "SamplesPerPixel": 3 if values.ndim == 3 else 1,
        "PhotometricInterpretation": "RGB" if values.ndim == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"),
    }
    if values.ndim == 3:
        defaults["PlanarConfiguration"] = 0
    for name, value in {**defaults, **tags}.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def heif(pixels, **options):
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("bands", [2, 4, 5, 16])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_bands_of_a_tiff_file_keep_their_values(dtype, bands, planes):
    values = GENERATOR.integers(0, 120, (20, 20, bands)).astype(dtype)
    values[0, 0], values[0, 1] = 0, 120
    stored = values if planes == "contig" else np.ascontiguousarray(values.transpose(2, 0, 1))
    data = tiff(stored, planarconfig=planes, photometric="minisblack", compression="zlib")
    header = header_of(data)
    assert (header.width, header.height, header.channels, header.is_deep) == (20, 20, bands, dtype != "uint8")
    image = decode(data, size=20, channels=bands, value_range=((0.0, 120.0),) * bands)
    expected = values.astype(float) * (1 if dtype == "uint8" else 255 / 120)
    np.testing.assert_allclose(levels_of(image.pixels), expected, atol=0.003)


def test_a_fourth_band_of_a_tiff_file_is_a_channel_and_alpha_is_not():
    values = GENERATOR.integers(0, 256, (20, 20, 4), dtype=np.uint8)
    data = tiff(values, photometric="rgb", extrasamples=["unspecified"])
    assert header_of(data).channels == 4
    np.testing.assert_array_equal(decode(data, size=20, channels=4).pixels, values)
    np.testing.assert_array_equal(decode(data, size=20).pixels, values[:, :, :3])
    with_alpha = tiff(values, photometric="rgb", extrasamples=["unassalpha"])
    assert header_of(with_alpha).channels == 3


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    "options", [{}, {"tile": (16, 16)}, {"planarconfig": "separate"}], ids=["strips", "tiles", "planes"]
)
def test_16_bit_color_of_a_tiff_file_keeps_all_bits(compression, byteorder, options):
    if compression == "lzw":
        pytest.importorskip("imagecodecs")
    values = GENERATOR.integers(0, 65536, (20, 20, 3), dtype=np.uint16)
    stored = np.ascontiguousarray(values.transpose(2, 0, 1)) if "planarconfig" in options else values
    data = tiff(stored, photometric="rgb", compression=compression, byteorder=byteorder, **options)
    image = decode(data, size=20, channels=3, value_range=((0.0, 65535.0),) * 3)
    np.testing.assert_array_equal(image.pixels, values)


@pytest.mark.parametrize("dtype", ["float64", "uint32", "int8", "float16"])
def test_gray_types_that_pillow_does_not_read(dtype):
    values = GENERATOR.integers(0, 100, (20, 20)).astype(dtype)
    image = decode(tiff(values), size=20, channels=1, value_range=((0.0, 100.0),))
    np.testing.assert_allclose(levels_of(image.pixels)[..., 0], values.astype(float) * 2.55, atol=0.003)


def test_pages_after_the_first_are_noted():
    values = GENERATOR.integers(0, 256, (2, 20, 20, 5), dtype=np.uint8)
    image = decode(tiff(values, **BANDS), size=20, channels=5)
    np.testing.assert_array_equal(image.pixels, values[0])
    assert image.notes == ("first of several frames used",)


def test_hostile_tiff_files_have_one_line_reasons():
    data = tiff(GENERATOR.integers(0, 256, (20, 20, 5), dtype=np.uint8), **BANDS, compression="zlib")
    for cut in range(0, len(data), 37):
        try:
            decode(data[:cut], size=8, channels=5)
        except BadImage as error:
            assert "\n" not in str(error)
    with pytest.raises(BadImage, match="too many pixels: expected at most 399"):
        decode(data, size=8, channels=5, max_pixels=399)
    with pytest.raises(BadImage, match="expected 1 to 16 bands, got 17"):
        decode(tiff(np.zeros((20, 20, 17), np.uint8), **BANDS), size=8)
    volume = tiff(np.zeros((20, 32, 32), np.float64), photometric="minisblack", volumetric=True, tile=(16, 16, 16))
    with pytest.raises(BadImage, match="expected a TIFF page of axes YX, YXS or SYX, got"):
        decode(volume, size=8)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_dicom_files_keep_their_unit(dtype):
    values = GENERATOR.integers(0, 200, (20, 24)).astype(dtype)
    data = dicom(values, RescaleSlope="2", RescaleIntercept="-100")
    header = header_of(data)
    assert (header.width, header.height, header.channels) == (24, 20, 1)
    image = decode(data, size=20, channels=1, value_range=((-100.0, 300.0),), resize_mode="crop")
    assert (image.width, image.height) == (24, 20)
    expected = (values[:, 2:-2] * 2.0) * 255 / 400
    np.testing.assert_allclose(levels_of(image.pixels)[..., 0], expected, atol=0.003)


def test_dicom_files_without_rescaling():
    pixels = GENERATOR.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    data = dicom(pixels)
    assert not header_of(data).is_deep
    np.testing.assert_array_equal(decode(data, size=20).pixels, pixels)
    gray = pixels[:, :, 0]
    inverted = decode(dicom(gray, PhotometricInterpretation="MONOCHROME1"), size=20, channels=1)
    np.testing.assert_array_equal(inverted.pixels[..., 0], 255 - gray)
    assert inverted.notes == ("MONOCHROME1 inverted",)
    twelve = gray.astype(np.uint16) * 16
    data = dicom(twelve, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    image = decode(data, size=20, channels=1, value_range=((0.0, 4095.0),))
    np.testing.assert_allclose(levels_of(image.pixels)[..., 0], (4095.0 - twelve) * 255 / 4095, atol=0.003)


def test_the_first_frame_of_a_dicom_file_is_used():
    frames = GENERATOR.integers(0, 256, (3, 20, 20), dtype=np.uint8)
    data = dicom(frames[0], NumberOfFrames=3).replace(frames[0].tobytes(), frames.tobytes())
    head = dicom(frames[0], NumberOfFrames=3)
    length = head.index(frames[0].tobytes()) - 4
    data = head[:length] + frames.nbytes.to_bytes(4, "little") + frames.tobytes()
    image = decode(data, size=20, channels=1)
    np.testing.assert_array_equal(image.pixels[..., 0], frames[0])
    assert image.notes == ("first of several frames used",)


def test_hostile_dicom_files_have_one_line_reasons():
    data = dicom(GENERATOR.integers(0, 256, (20, 20), dtype=np.uint8))
    for cut in range(132, len(data), 29):
        for read in (lambda cut=cut: decode(data[:cut], size=8), lambda cut=cut: header_of(data[:cut])):
            try:
                read()
            except BadImage as error:
                assert "\n" not in str(error)
    with pytest.raises(BadImage, match="DICOM without a readable image: "):
        decode(data[:200], size=8)
    with pytest.raises(BadImage, match="too many pixels: expected at most 50,000,000"):
        decode(dicom(np.zeros((2, 2), np.uint8), Rows=65000, Columns=65000), size=8)


def test_heic_files_are_read_like_photographs():
    flat = np.full((32, 48, 3), (200, 60, 30), np.uint8)
    data = heif(flat, quality=95)
    header = header_of(data)
    assert (header.width, header.height, header.channels, header.is_deep) == (48, 32, 3, False)
    image = decode(data, size=16, suffix=".heic")
    assert (image.width, image.height) == (48, 32) and image.notes == ()
    assert np.abs(image.pixels.astype(int) - flat[:16, :16]).max() <= 6
    assert "extension does not match content" in decode(data, size=16, suffix=".jpg").notes
    for cut in range(0, len(data), 61):
        with pytest.raises(BadImage):
            decode(data[:cut], size=16)


@pytest.mark.parametrize(
    ("module", "data", "reason"),
    [
        ("pillow_heif", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"HEIC: install skipway\[heif\]"),
        ("pydicom", bytes(128) + b"DICM" + bytes(99), r"DICOM: install skipway\[dicom\]"),
    ],
)
def test_a_missing_extra_is_named(module, data, reason, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    for read in (lambda: decode(data, size=8), lambda: header_of(data)):
        with pytest.raises(BadImage, match=reason):
            read()


def test_a_missing_extra_for_bands_and_compressions_is_named(monkeypatch):
    data = tiff(np.zeros((20, 20, 5), np.uint8), **BANDS)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(BadImage, match=r"TIFF of several bands: install skipway\[tiff\]"):
        decode(data, size=8, channels=5)


def test_a_missing_codec_of_tiff_files_is_named(monkeypatch):

    def without_codec(page):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    data = tiff(np.zeros((20, 20, 5), np.uint8), **BANDS)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", without_codec)
    with pytest.raises(BadImage, match=r"TIFF of this compression: install skipway\[tiff\] \("):
        decode(data, size=8, channels=5)
