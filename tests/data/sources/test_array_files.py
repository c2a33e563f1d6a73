"""Files that hold arrays: .npy, TIFF of several bands, and deep PNG and TIFF files; numpy is the oracle."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from skipway.data.sources.array_files import checked_values
from skipway.data.sources.decode import BadImage, decode, decode_array, deep_values_of, header_of
from skipway.data.value_range import levels_of

GENERATOR = np.random.default_rng(0)
FULL = (0.0, 65535.0)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npy_header(shape, descr="<u2", body=b""):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + body


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png16(values):
    """A PNG file of 16 bits by hand, because Pillow does not write 16-bit color."""
    height, width, channels = values.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + values[y].astype(">u2").tobytes() for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep(channels, size=24, dtype=np.uint16):
    return GENERATOR.integers(0, 65536, (size, size, channels)).astype(dtype)


def decoded(data, channels, value_range=None, **options):
    return decode(data, size=24, channels=channels, value_range=value_range or (FULL,) * channels, **options)


@pytest.mark.parametrize("channels", [1, 3])
def test_all_16_bits_of_a_png_are_kept(channels):
    values = deep(channels)
    image = decoded(png16(values), channels)
    np.testing.assert_array_equal(image.pixels, values)
    assert image.pixels.dtype == np.uint16 and "16-bit color reduced to 8 bits" not in image.notes
    header = header_of(png16(values))
    assert (header.width, header.height, header.channels, header.is_deep) == (24, 24, channels, True)
    np.testing.assert_array_equal(deep_values_of(png16(values), channels), values)


@pytest.mark.parametrize("channels", [2, 4])
def test_deep_transparency_is_composited_over_white(channels):
    values = deep(channels)
    color, alpha = values[:, :, :-1].astype(float), values[:, :, -1:] / 65535
    image = decoded(png16(values), channels - 1)
    np.testing.assert_allclose(image.pixels, color * alpha + 65535 * (1 - alpha), atol=2)
    assert "transparency composited over white" in image.notes


def test_low_values_of_a_16_bit_png_use_the_whole_range():
    values = GENERATOR.integers(0, 121, (24, 24, 1)).astype(np.uint16)
    image = decoded(png16(values), 1, ((0.0, 120.0),))
    np.testing.assert_allclose(levels_of(image.pixels), values * (255 / 120), atol=0.01)
    assert not image.notes


def test_a_deep_image_is_resized_without_rounding_to_256_levels():
    values = np.linspace(1000, 1100, 48 * 48).reshape(48, 48, 1).astype(np.uint16)
    image = decode(png16(values), size=24, channels=1, value_range=((1000.0, 1100.0),))
    means = values.reshape(24, 2, 24, 2).mean((1, 3))
    inner = (slice(2, -2),) * 2
    np.testing.assert_allclose((levels_of(image.pixels)[..., 0] / 255 * 100 + 1000)[inner], means[inner], atol=0.6)


def test_images_of_8_bits_among_deep_ones_keep_their_pixels():
    pixels = GENERATOR.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    image = decoded(file.getvalue(), 3, ((0.0, 120.0),) * 3)
    np.testing.assert_array_equal(levels_of(image.pixels), pixels)
    assert image.notes == ("8-bit image among deep ones, scaled by 255",)
    assert deep_values_of(file.getvalue(), 3) is None


@pytest.mark.parametrize(
    "options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}], ids=["raw", "lzw", "deflate"]
)
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_gray_tiff_files_keep_their_values(dtype, options):
    values = (deep(1).astype(np.int64) - (30000 if dtype != np.uint16 else 0)).astype(dtype)
    file = io.BytesIO()
    Image.fromarray(values[:, :, 0]).save(file, "TIFF", **options)
    span = ((float(values.min()), float(values.max())),)
    levels = levels_of(decoded(file.getvalue(), 1, span).pixels)
    expected = (values.astype(float) - span[0][0]) * 255 / (span[0][1] - span[0][0])
    np.testing.assert_allclose(levels, expected, atol=0.003)


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", ">u2", "int16", "int32", "uint32", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("channels", [0, 1, 2, 3, 5, 16])
def test_npy_files_of_any_type_and_channels(dtype, channels):
    shape = (24, 24, channels) if channels else (24, 24)
    values = GENERATOR.integers(0, 120, shape).astype(dtype)
    values.flat[:2] = 0, 120
    count = max(1, channels)
    header = header_of(npy(values))
    assert (header.channels, header.is_deep) == (count, dtype != "uint8")
    image = decode(npy(values), size=24, channels=count, value_range=((0.0, 120.0),) * count)
    expected = values.reshape(24, 24, count).astype(float) * (1 if dtype == "uint8" else 255 / 120)
    np.testing.assert_allclose(levels_of(image.pixels), expected, atol=0.003)
    same = decode_array(values, size=24, channels=count, value_range=((0.0, 120.0),) * count)
    np.testing.assert_array_equal(same.pixels, image.pixels)


def test_npy_files_in_other_layouts():
    values = GENERATOR.integers(0, 256, (5, 24, 30), dtype=np.uint8)
    image = decode(npy(values), size=24, channels=5)
    assert (image.width, image.height) == (30, 24) and "channels moved from the first axis to the last" in image.notes
    columns = np.asfortranarray(values[0, :, :24])
    np.testing.assert_array_equal(decode(npy(columns), size=24, channels=1).pixels[..., 0], columns)
    mask = values[0, :, :24] > 100
    np.testing.assert_array_equal(decode(npy(mask), size=24, channels=1).pixels[..., 0], mask * 255)
    assert not header_of(npy(mask)).is_deep


def test_16_bit_color_of_a_ppm_file_keeps_all_bits():
    values = deep(3)
    data = b"P6 # a comment\n24\n24 65535\n" + values.astype(">u2").tobytes()
    assert header_of(data).is_deep
    np.testing.assert_array_equal(decoded(data, 3).pixels, values)
    twelve = b"P6\n24 24\n4095\n" + (values >> 4).astype(">u2").tobytes()
    np.testing.assert_allclose(decoded(twelve, 3).pixels, (values >> 4) * (65535 / 4095), atol=0.5)
    with pytest.raises(BadImage, match="truncated: expected 3,456 bytes of values, got 3,455"):
        decode(data[:-1], size=8)
    for hostile in (b"P6 999999999 999999999 65535\n", b"P6 " + b"#" * 10_000 + b" 2 2 65535\n", b"P6 2 2 99999\n"):
        with pytest.raises(BadImage):
            decode(hostile, size=8)


def test_deep_color_of_formats_that_keep_8_bits_is_noted():
    pixels = GENERATOR.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "SGI", bpc=2)
    image = decode(file.getvalue(), size=24)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert "16-bit color reduced to 8 bits" in image.notes


def test_integers_of_astronomical_images_have_a_sign():
    values = (deep(1).astype(np.int32) - 32768).astype(">i2")
    cards = [b"SIMPLE  =                    T", b"BITPIX  =                   16", b"NAXIS   =                    2"]
    cards += [b"NAXIS1  =                   24", b"NAXIS2  =                   24", b"END"]
    data = b"".join(card.ljust(80) for card in cards).ljust(2880) + values.tobytes()
    assert header_of(data).is_deep
    image = decode(data, size=24, channels=1, value_range=((-32768.0, 32767.0),), suffix=".fits")
    np.testing.assert_allclose(image.pixels[::-1], values.astype(float) + 32768, atol=0.5)


@pytest.mark.parametrize("channels", [2, 4, 5, 16])
@pytest.mark.parametrize("resize_mode", ["squash", "crop", "pad"])
def test_every_band_is_resized_as_pillow_resizes_gray(channels, resize_mode):
    values = GENERATOR.integers(0, 256, (40, 31, channels), dtype=np.uint8)
    image = decode_array(values, size=16, channels=channels, resize_mode=resize_mode, interpolation="bicubic")
    for band in range(channels):
        gray = decode_array(values[:, :, band], size=16, channels=1, resize_mode=resize_mode, interpolation="bicubic")
        np.testing.assert_array_equal(image.pixels[:, :, band], gray.pixels[:, :, 0])


def test_nan_and_infinite_values_are_replaced_and_noted():
    values = np.full((24, 24), 0.5, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    image = decode(npy(values), size=24, channels=1, value_range=((0.0, 1.0),))
    assert image.pixels[0, :4, 0].tolist() == [0, 65535, 0, 32768]
    assert image.notes == ("NaN, infinite or no-data values replaced",)
    with pytest.raises(BadImage, match="NaN or infinite values in float gray"):
        decode(npy(values), size=24, channels=1)


def test_deep_arrays_for_a_model_of_8_bits_are_narrowed_as_deep_files_are():
    values = deep(3)
    image = decode(npy(values), size=24)
    np.testing.assert_array_equal(image.pixels, (values.astype(int) + 128) // 257)
    assert image.notes == ("16-bit color rescaled to 8 bits",)
    with pytest.raises(
        BadImage, match=r"unsupported range of 32-bit color: expected 0 to 255 or 0 to 65535, got -5 to"
    ):
        decode(npy(values.astype(np.int32) - 5 - values.min()), size=24)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.array([{"a": 1}], object)), "array of Python objects, which could run code: expected numbers"),
        (npy(np.zeros((4, 4), "U3")), "expected an array of real numbers, got the type"),
        (npy(np.zeros((4, 4), complex)), "expected an array of real numbers, got the type complex128"),
        (npy(np.zeros((4, 4), [("a", "i4")])), "expected an array of real numbers, got the type"),
        (npy(np.zeros((4, 4), "M8[s]")), "expected an array of real numbers, got the type"),
        (npy(np.zeros((4,))), r"expected an array of shape \(H, W\), .* with 1 to 16 channels, got \(4,\)"),
        (npy(np.zeros(())), r"expected an array of shape .*, got \(\)"),
        (npy(np.zeros((0, 4))), r"expected an array of shape .*, got \(0, 4, 1\)"),
        (npy(np.zeros((2, 4, 4, 3))), r"expected an array of shape .*, got \(2, 4, 4, 3\)"),
        (npy(np.zeros((20, 20, 20))), r"expected an array of shape .*, got \(20, 20, 20\)"),
        (npy(np.zeros((9, 9)))[:-1], "truncated: expected 648 bytes of values, got 647"),
        (npy_header((10**9, 10**9)), "truncated: expected 2,000,000,000,000,000,000 bytes of values, got 0"),
        (npy_header((10**30, 10**30)), "truncated: expected"),
        (npy_header((-5, 4), body=bytes(99)), "broken: cannot read the header of the array"),
        (npy_header((4, 4), "<u3"), "broken: cannot read the header of the array"),
        (npy_header((4, 4), "|O", pickle.dumps([0] * 16)), "array of Python objects, which could run code"),
        (b"\x93NUMPY\x01\0" + b"\xff\xff" + b"(" * 65535, "broken: cannot read the header of the array"),
        (b"\x93NUMPY\x09\x09", "broken: cannot read the header of the array"),
        (b"\x93NUMPY", "broken: cannot read the header of the array"),
    ],
)
def test_hostile_npy_files_have_one_line_reasons(data, reason):
    for read in (lambda: decode(data, size=8), lambda: header_of(data), lambda: deep_values_of(data, 1)):
        with pytest.raises(BadImage, match=reason) as refused:
            read()
        assert "\n" not in str(refused.value)


def test_a_large_array_needs_the_pixel_limit():
    with pytest.raises(BadImage, match=r"too many pixels: expected at most 99 \(--max-pixels\), got 100"):
        decode(npy(np.zeros((10, 10), np.uint8)), size=8, max_pixels=99)


@pytest.mark.parametrize("channels, wanted", [(2, 3), (5, 3), (3, 5), (1, 4), (4, 1)])
def test_other_numbers_of_channels_are_refused(channels, wanted):
    values = np.zeros((8, 8, channels), np.uint8)
    with pytest.raises(BadImage, match=f"expected an image of {wanted} channels, got {channels}"):
        decode_array(values, size=8, channels=wanted)


def test_a_picture_is_refused_by_a_model_of_five_bands():
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    with pytest.raises(BadImage, match="expected an image of 5 channels, got 3"):
        decode(file.getvalue(), size=8, channels=5)


def test_deep_gray_and_color_are_converted_to_each_other():
    color = deep(3)
    gray = decode_array(color, size=24, channels=1, value_range=(FULL,))
    np.testing.assert_allclose(gray.pixels[..., 0], color @ np.array([0.299, 0.587, 0.114]), atol=1)
    repeated = decode_array(color[:, :, 0], size=24, channels=3, value_range=(FULL,) * 3)
    np.testing.assert_array_equal(repeated.pixels, np.repeat(color[:, :, :1], 3, axis=2))


def test_arrays_of_python_values_are_refused():
    with pytest.raises(BadImage, match="expected an array of real numbers, got the type object"):
        checked_values(np.array([[None]]))
