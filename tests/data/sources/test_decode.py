import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from image_folders import class_folders
from PIL import Image, ImageFile, TiffImagePlugin

from skipway.data.images.decoded_cache import decode_images
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.sources.choose_source import open_source
from skipway.data.sources.decode import (
    MAX_PIXELS,
    NEARLY_BLACK,
    SUFFIXES,
    BadImage,
    DecodedImage,
    decode,
    size_of,
)
from skipway.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
RESIZE_MODES = ("squash", "crop", "pad")


def encoded(pixels, form="PNG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def scene(height, width):
    """Smooth shapes and some texture, asymmetric in every direction: nearer to a photograph than noise is."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    y, x = y / height, x / width
    waves = [np.sin(9 * x + 4 * y * y), np.cos(7 * y + 3 * x * x), np.sin(12 * x * y + 2 * x)]
    decoded = np.stack(waves, axis=2) * 90 + 128 + np.random.default_rng(1).normal(0, 6, (height, width, 3))
    decoded[(x - 0.3) ** 2 + (y - 0.6) ** 2 < 0.02] = (230, 40, 60)
    return decoded.clip(0, 255).astype(np.uint8)


def chunk(kind, body, checksum=None):
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(width, height, *middle, depth=8, color=2):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(middle) + chunk(b"IEND", b"")


def tiff(width, height, bits, body):
    """An uncompressed grey TIFF by hand, for depths that Pillow cannot write."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 122), (277, 1), (278, height)]
    tags.append((279, len(body)))
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + body


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def stored_for(orientation, upright):
    """The pixels that a camera held at `orientation` stores, by the definition in the EXIF standard."""
    back = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p),
        7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
        8: lambda p: np.rot90(p, -1),
    }
    return np.ascontiguousarray(back[orientation](upright))


def six(pixels):
    return {form: encoded(pixels, form) for form in FORMATS}


# -- exactness, shapes, channels


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
def test_a_image_of_the_target_size_keeps_its_exact_pixels(form, resize_mode):
    pixels = noise(24, 24)
    decoded = decode(encoded(pixels, form), size=24, resize_mode=resize_mode)
    assert np.array_equal(decoded.pixels, pixels) and decoded.notes == ()
    assert (decoded.width, decoded.height, decoded.mode) == (24, 24, "RGB")


def test_a_jpeg_of_the_target_size_equals_pillows_own_pixels():
    data = encoded(noise(32, 32), "JPEG")
    assert np.array_equal(decode(data, size=32).pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_pixels_are_writable_contiguous_bytes():
    for pixels in (noise(9, 9), noise(9, 9, 1)):
        for channels in (1, 3):
            found = decode(encoded(pixels), size=9, channels=channels).pixels
            assert found.dtype == np.uint8 and found.shape == (9, 9, channels)
            assert found.flags.writeable and found.flags.c_contiguous


def test_grey_and_color_become_each_other_and_say_so():
    grey = decode(encoded(noise(8, 8, 1)), size=8)
    assert grey.notes == ("gray repeated to three channels",)
    assert np.array_equal(grey.pixels, np.repeat(noise(8, 8, 1)[..., None], 3, 2))
    color = decode(encoded(noise(8, 8)), size=8, channels=1)
    assert color.notes == ("color converted to gray",)
    assert np.array_equal(color.pixels[..., 0], np.asarray(Image.fromarray(noise(8, 8)).convert("L")))


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 20000), (20000, 1), (3, 700), (2, 2)])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_extreme_shapes_work_for_every_fit(resize_mode, shape, form):
    decoded = decode(encoded(np.full((*shape, 3), 200, np.uint8), form), size=32, resize_mode=resize_mode)
    assert decoded.pixels.shape == (32, 32, 3)
    assert (decoded.height, decoded.width) == shape
    values = set(np.unique(decoded.pixels).tolist())
    assert values <= {128, *range(198, 203)} and (resize_mode == "pad" or 128 not in values)


def test_a_very_long_image_keeps_its_brightness():
    data = encoded(Image.new("L", (1, 4_000_000), 250))
    for resize_mode in RESIZE_MODES:
        assert decode(data, size=1, resize_mode=resize_mode, channels=1).pixels.item() >= 249


def test_crop_cuts_the_centre_square_first():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = noise(10, 10)
    assert np.array_equal(decode(encoded(pixels), size=10, resize_mode="crop").pixels, noise(10, 10))


def test_pad_keeps_the_whole_image_between_grey_bars():
    found = decode(encoded(np.full((10, 20, 3), 7, np.uint8)), size=20, resize_mode="pad").pixels
    assert (found[5:15] == 7).all() and (found[:5] == 128).all() and (found[15:] == 128).all()


def test_decode_refuses_wrong_arguments():
    for wrong in ({"size": 0}, {"size": 8, "channels": 17}, {"size": 8, "resize_mode": "stretch"}):
        with pytest.raises(
            InputError, match="expected size >= 1, 1 to 16 channels and resize_mode squash, crop, pad, got"
        ):
            decode(encoded(noise(4, 4)), **wrong)


# -- reduced decoding of large JPEGs


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("shape", [(900, 1203), (1203, 900), (517, 1999), (70, 3000)])
def test_reduced_jpeg_decoding_stays_close_to_the_full_one(resize_mode, shape):
    data = encoded(scene(*shape), "JPEG", quality=92)
    full = encoded(np.asarray(Image.open(io.BytesIO(data))), "PNG", compress_level=0)
    quick, slow = (decode(d, size=48, resize_mode=resize_mode).pixels.astype(int) for d in (data, full))
    assert np.abs(quick - slow).mean() < 3


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_jpeg_decoding_turns_by_exif_too(resize_mode, orientation):
    upright = scene(403, 901)
    data = encoded(stored_for(orientation, upright), "JPEG", quality=95, exif=exif(orientation))
    found, expected = (
        decode(data, size=40, resize_mode=resize_mode),
        decode(encoded(upright), size=40, resize_mode=resize_mode),
    )
    assert (found.width, found.height) == (901, 403)
    assert np.abs(found.pixels.astype(int) - expected.pixels).mean() < 3


# -- EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form, options", [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})])
def test_exif_turns_all_eight_orientations_upright(orientation, form, options):
    upright = noise(21, 34)
    data = encoded(stored_for(orientation, upright), form, exif=exif(orientation), **options)
    for resize_mode in RESIZE_MODES:
        found = decode(data, size=13, resize_mode=resize_mode)
        assert np.array_equal(found.pixels, decode(encoded(upright), size=13, resize_mode=resize_mode).pixels)
        assert (found.width, found.height) == (34, 21)
        assert ("rotated or flipped by EXIF orientation" in found.notes) == (orientation > 1)
    assert size_of(data) == (34, 21, "RGB")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_jpeg_and_a_webp_exactly(orientation):
    pixels = noise(16, 16)
    for form, options in (("JPEG", {}), ("WEBP", {"lossless": True})):
        plain = decode(encoded(pixels, form, **options), size=16).pixels
        turned = decode(encoded(pixels, form, exif=exif(orientation), **options), size=16).pixels
        assert np.array_equal(stored_for(orientation, turned), plain)


def test_an_orientation_behind_a_pngs_pixels_is_found():
    data = encoded(stored_for(6, noise(8, 12)))
    late = data[:-12] + chunk(b"eXIf", exif(6)[6:]) + data[-12:]
    assert np.array_equal(decode(late, size=12).pixels, decode(encoded(noise(8, 12)), size=12).pixels)


@pytest.mark.parametrize("block", [b"Exif\0\0" + b"garbage!" * 5, b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(30)])
def test_broken_exif_is_ignored_with_a_note(block):
    for form in ("JPEG", "PNG", "WEBP"):
        decoded = decode(encoded(noise(16, 16), form, exif=block), size=16)
        assert {"broken EXIF ignored", "damaged metadata ignored"} & set(decoded.notes)


def test_an_orientation_out_of_range_counts_as_upright():
    assert "rotated or flipped by EXIF orientation" not in decode(encoded(noise(4, 6), exif=exif(9)), size=4).notes


def test_damaged_metadata_is_a_note_and_never_a_warning():
    good = exif(6)
    cut = encoded(noise(16, 16), "JPEG", exif=good[:14] + b"\xff\0" + good[16:])
    assert "damaged metadata ignored" in decode(cut, size=16).notes


def test_pillows_warnings_stay_as_they_are_outside_of_a_decode():
    decode(encoded(noise(4, 4)), size=4)
    with pytest.warns(UserWarning, match="kept for others"):
        TiffImagePlugin.warnings.warn("kept for others")
    assert TiffImagePlugin.warnings.catch_warnings is warnings.catch_warnings


# -- modes


def test_cmyk_and_ycck_become_rgb():
    rgb = scene(40, 40)
    data = encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=98, subsampling=0)
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    decoded = decode(data, size=40)
    assert decoded.mode == "CMYK" and decoded.notes == ("CMYK converted to RGB",)
    assert np.array_equal(decoded.pixels, reference) and np.abs(decoded.pixels.astype(int) - rgb).mean() < 6
    ycck = data[: adobe + 11] + b"\x02" + data[adobe + 12 :]
    assert np.array_equal(decode(ycck, size=40).pixels, np.asarray(Image.open(io.BytesIO(ycck)).convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_divided_by_257_for_every_value(form):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = decode(encoded(values, form), size=256, channels=1)
    assert np.array_equal(decoded.pixels[..., 0], np.rint(values / 257))
    assert decoded.mode.startswith("I;16") and decoded.notes == ("16-bit gray rescaled to 8 bits",)


def test_12_bit_grey_is_rescaled_by_its_own_depth():
    decoded = decode(tiff(2, 2, 12, bytes.fromhex("000fff 800001".replace(" ", ""))), size=2, channels=1)
    assert decoded.notes == ("12-bit gray rescaled to 8 bits",)
    assert decoded.pixels.ravel().tolist() == [0, 255, 128, 0]


def test_16_bit_rgb_png_is_rescaled():
    values = np.array([[[0, 0x8080, 0xFFFF]]], dtype=">u2")
    body = chunk(b"IDAT", zlib.compress(b"\0" + values.tobytes()))
    assert decode(png(1, 1, body, depth=16), size=1).pixels.ravel().tolist() == [0, 128, 255]


def test_transparent_16_bit_grey_becomes_white():
    body = chunk(b"tRNS", b"\x10\0") + chunk(b"IDAT", zlib.compress(b"\0\x10\0\0\0"))
    decoded = decode(png(2, 1, body, depth=16, color=0), size=2, channels=1, resize_mode="pad")
    assert decoded.pixels[0, :, 0].tolist() == [255, 0] and "transparency composited over white" in decoded.notes


def test_32_bit_grey_is_taken_by_its_range():
    def of(values):
        return decode(encoded(np.array(values, np.int32), "TIFF"), size=2, channels=1)

    assert of([[0, 255], [7, 8]]).pixels.ravel().tolist() == [0, 255, 7, 8]
    assert of([[0, 65535], [257, 514]]).pixels.ravel().tolist() == [0, 255, 1, 2]
    assert of([[0, 1], [2, 3]]).notes == ("32-bit gray read as 8-bit values",)
    for wrong in ([[0, 65536], [0, 0]], [[-1, 5], [0, 0]]):
        with pytest.raises(BadImage, match="range of 32-bit gray: expected 0 to 255 or 0 to 65535, got"):
            of(wrong)


def test_float_grey_is_taken_by_its_range():
    def of(values):
        return decode(encoded(np.array(values, np.float32), "TIFF"), size=2, channels=1)

    assert of([[0, 1], [0.5, 0.25]]).pixels.ravel().tolist() == [0, 255, 128, 64]
    assert of([[0, 1], [0.5, 0.25]]).notes == ("float gray rescaled",)
    assert of([[0, 255], [3, 4]]).pixels.ravel().tolist() == [0, 255, 3, 4]
    assert of([[0, 255], [3, 4]]).notes == ("float gray rounded",)
    for wrong in ([[-0.1, 1], [0, 0]], [[0, 256], [0, 0]]):
        with pytest.raises(BadImage, match=r"range of float gray: expected \[0, 1\] or \[0, 255\], got"):
            of(wrong)
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(BadImage, match="NaN or infinite values in float gray"):
            of([[0, 1], [wrong, 0]])


def test_alpha_is_composited_over_white():
    pixels = noise(8, 8, 4)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    decoded = decode(encoded(pixels), size=8)
    assert np.abs(decoded.pixels - expected).max() <= 1 and (decoded.pixels[0] == 255).all()
    assert np.array_equal(decoded.pixels[1], pixels[1, :, :3]) and decoded.notes == (
        "transparency composited over white",
    )


def test_grey_with_alpha_and_bilevel_stay_grey():
    pixels = np.stack([noise(4, 4, 1), np.full((4, 4), 0, np.uint8)], axis=2)
    decoded = decode(encoded(pixels), size=4, channels=1)
    assert (
        (decoded.pixels == 255).all()
        and decoded.mode == "LA"
        and decoded.notes == ("transparency composited over white",)
    )
    bilevel = decode(encoded(Image.fromarray(noise(8, 8, 1)).convert("1")), size=8, channels=1)
    assert set(np.unique(bilevel.pixels)) == {0, 255} and bilevel.notes == ("bilevel converted to gray",)


def test_a_palette_becomes_rgb_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    plain = decode(encoded(image), size=2)
    assert plain.pixels[0].tolist() == [[10, 20, 30], [40, 50, 60]] and plain.notes == ("palette converted to RGB",)
    for form in ("PNG", "GIF"):
        clear = decode(encoded(image, form, transparency=0), size=2)
        assert clear.pixels[0].tolist() == [[255, 255, 255], [40, 50, 60]]
        assert clear.notes == ("palette converted to RGB", "transparency composited over white")


@pytest.mark.parametrize("mode", ["LAB", "YCbCr", "CMYK"])
def test_color_spaces_of_tiffs_are_converted(mode):
    image = Image.fromarray(scene(8, 8))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    else:
        image = image.convert(mode)
    decoded = decode(encoded(image, "TIFF"), size=8)
    assert decoded.notes == (f"{mode} converted to RGB",)
    assert np.abs(decoded.pixels.astype(int) - scene(8, 8)).mean() < 4


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_used(form):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if form == "WEBP" else {}
    decoded = decode(encoded(frames[0], form, save_all=True, append_images=frames[1:], **options), size=8)
    assert "first of several frames used" in decoded.notes
    assert (decoded.pixels == (255, 0, 0)).all()


def test_a_gif_with_a_broken_second_frame_still_gives_its_first():
    frames = [Image.fromarray(noise(8, 8, seed=s)) for s in range(2)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    second = data.rindex(b",\0\0\0\0")
    for cut in (second + 3, second + 12):
        assert decode(data[:cut], size=8).pixels.shape == (8, 8, 3)


# -- truncation and oddities


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("percent", [10, 50, 90, 99])
def test_a_truncated_file_is_refused_and_never_half_grey(form, percent):
    data = encoded(noise(96, 96), form)
    if form == "GIF":
        data = encoded(Image.fromarray(noise(96, 96, 1)), form)
    with pytest.raises(BadImage, match="truncated: |broken: "):
        decode(data[: len(data) * percent // 100], size=32)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}])
@pytest.mark.parametrize("percent", [2, 10, 50, 90, 99])
def test_a_truncated_jpeg_is_refused_whatever_its_kind(options, percent):
    data = encoded(scene(300, 400), "JPEG", **options)
    for size in (16, 300):
        with pytest.raises(BadImage, match="truncated: |broken: cannot read the header"):
            decode(data[: len(data) * percent // 100], size=size)


def test_a_jpeg_cut_anywhere_is_refused_or_whole():
    data = encoded(scene(40, 56), "JPEG", quality=60)
    whole = decode(data, size=40).pixels
    kept = 0
    for cut in range(1, len(data)):
        try:
            decoded = decode(data[:cut], size=40)
        except BadImage:
            continue
        kept += 1
        assert np.array_equal(decoded.pixels, whole) and "no end marker" in decoded.notes
    assert kept == 1


def test_a_jpeg_that_lacks_only_its_end_marker_is_used_and_noted():
    for mode in ("RGB", "L"):
        data = encoded(Image.fromarray(scene(50, 70)).convert(mode), "JPEG")
        decoded = decode(data[:-2], size=24)
        assert np.array_equal(decoded.pixels, decode(data, size=24).pixels) and "no end marker" in decoded.notes


def test_a_jpeg_without_its_last_byte_is_refused():
    with pytest.raises(BadImage, match="truncated: "):
        decode(encoded(scene(50, 70), "JPEG")[:-1], size=24)


def test_bytes_after_the_end_are_noted_but_padding_is_not():
    for form in ("JPEG", "PNG", "WEBP"):
        data = encoded(noise(8, 8), form)
        clean = decode(data, size=8)
        assert decode(data + b"junk", size=8).notes == ("bytes after the end",)
        assert decode(data + bytes(100), size=8).notes == clean.notes == ()
        assert np.array_equal(decode(data + b"junk", size=8).pixels, clean.pixels)


def test_the_end_marker_of_a_thumbnail_is_not_the_images():
    thumbnail = encoded(noise(8, 8), "JPEG")
    data = encoded(noise(16, 16), "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    assert decode(data[:-2] + bytes(8), size=16).notes == ("no end marker",)


def test_a_png_with_a_wrong_checksum_is_used_where_its_pixels_can_be_read():
    data = bytearray(encoded(noise(8, 8)))
    checksum = data.index(b"IEND") - 5
    data[checksum] ^= 1
    decoded = decode(bytes(data), size=8)
    assert np.array_equal(decoded.pixels, noise(8, 8)) and decoded.notes == ("checksum wrong, pixels readable",)
    data[30] ^= 1
    with pytest.raises(BadImage, match="broken: cannot read the header"):
        decode(bytes(data), size=8)


def test_a_png_without_its_end_is_noted():
    assert decode(encoded(noise(8, 8))[:-12], size=8).notes == ("no end marker",)


def test_an_extension_of_another_format_is_noted():
    data = encoded(noise(8, 8))
    assert decode(data, size=8, suffix=".JPG").notes == ("extension does not match content",)
    assert decode(data, size=8, suffix=".png").notes == decode(data, size=8, suffix=".dat").notes == ()
    assert {".jpg", ".jpeg", ".tiff"} <= SUFFIXES


# -- what is not an image


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"just text",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
    ],
)
def test_other_content_is_refused_whatever_its_name(data):
    for refused in (lambda: decode(data, size=8, suffix=".jpg"), lambda: size_of(data)):
        with pytest.raises(
            BadImage, match="unsupported format: expected the content of an image file, such as JPEG, PNG or TIFF"
        ):
            refused()


def test_reasons_are_one_printable_line():
    for data in (b"\x89PNG\r\n\x1a\n\n\n", png(4, 4, chunk(b"IDAT", b"\x1b[2J\n")), png(4, 4, b"\0\0\0\4\x1b\n\r\x07")):
        with pytest.raises(BadImage) as caught:
            decode(data, size=8)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 240


# -- bombs


def bombs():
    for side in (7072, 10000, 14000, 30000, 2**31 - 1):
        yield f"png {side}", png(side, side, chunk(b"IDAT", zlib.compress(bytes(1000))))
        yield f"bmp {side}", b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    for side in (8000, 60000):
        frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2D\1\0;"
        yield f"gif {side}", b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6) + frame
        yield f"tiff {side}", tiff(side, side, 8, bytes(10))
        data = bytearray(encoded(noise(8, 8), "JPEG"))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
        yield f"jpeg {side}", bytes(data)


@pytest.mark.parametrize("data", [pytest.param(d, id=name) for name, d in bombs()])
def test_a_bomb_is_refused_from_its_header(data, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("the pixels are decoded"))
    for refused in (lambda: decode(data, size=8), lambda: size_of(data)):
        with pytest.raises(
            BadImage, match=r"too many pixels: expected at most 50,000,000 \(--max-pixels\), got [\d,]+"
        ):
            refused()


def test_a_raised_limit_holds_as_far_as_pillows_own():
    data = png(10000, 10000, chunk(b"IDAT", zlib.compress(bytes(1000))))
    assert size_of(data, max_pixels=100_000_000) == (10000, 10000, "RGB")
    with pytest.raises(BadImage, match=r"expected at most 99,999,999 \(--max-pixels\), got 100,000,000"):
        size_of(data, max_pixels=99_999_999)
    with pytest.raises(BadImage, match=r"expected at most 178,956,970 \(--max-pixels\), got 196,000,000"):
        size_of(png(14000, 14000), max_pixels=10**9)
    assert MAX_PIXELS == 50_000_000


def test_a_lowered_limit_holds():
    assert decode(encoded(noise(10, 10)), size=4, max_pixels=100).width == 10
    with pytest.raises(BadImage, match=r"expected at most 99 \(--max-pixels\), got 100"):
        decode(encoded(noise(10, 10)), size=4, max_pixels=99)


def test_png_text_and_profile_bombs_do_not_grow():
    body = zlib.compress(bytes(30_000_000), 9)
    pixels = chunk(b"IDAT", zlib.compress(bytes(4)))
    for bomb in (chunk(b"zTXt", b"Comment\0\0" + body), chunk(b"iCCP", b"profile\0\0" + body)):
        try:
            assert decode(png(1, 1, bomb, pixels), size=1).pixels.shape == (1, 1, 3)
        except BadImage as error:
            assert "too large" in str(error)


def test_a_machine_without_memory_is_not_taken_for_a_broken_image(monkeypatch, tmp_path):
    """Or a run would leave out good images, in silence up to --max-unreadable."""
    class_folders(tmp_path)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", full)
    with pytest.raises(MemoryError):
        decode(encoded(noise(4, 4)), size=4, channels=1)
    with pytest.raises(MemoryError):
        decode_images(open_source(str(tmp_path)), DecodeSettings(8, 8, 1), max_unreadable=1)


def tiff_of_16_bit_color(values):
    """An uncompressed RGB TIFF of 16 bits by hand, which Pillow cannot write."""
    height, width, _ = values.shape
    body = values.astype("<u2").tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8 + 2 + 10 * 12 + 4), (259, 3, 1, 1), (262, 3, 1, 2)]
    start = 8 + 2 + 10 * 12 + 4 + 6
    tags += [(273, 4, 1, start), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(body)), (284, 3, 1, 1)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + struct.pack("<HHH", 16, 16, 16) + body


def png_of_16_bit_color(values):
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, chunk(b"IDAT", zlib.compress(rows)), depth=16, color={2: 4, 3: 2, 4: 6}[channels])


DEEP = {
    "grey PNG": lambda values: encoded(values[:, :, 0]),
    "grey TIFF": lambda values: encoded(values[:, :, 0], "TIFF"),
    "color PNG": lambda values: png_of_16_bit_color(values[:, :, :3]),
    "color TIFF": lambda values: tiff_of_16_bit_color(values[:, :, :3]),
    "color PNG with alpha": png_of_16_bit_color,
    "grey PNG with alpha": lambda values: png_of_16_bit_color(values[:, :, [0, 3]]),
}


@pytest.mark.parametrize("form", DEEP)
def test_images_of_16_bits_become_black_never_in_silence(form):
    values = np.random.default_rng(0).integers(1000, 4096, (6, 6, 4)).astype(np.uint16)  # as a camera of 12 bits has it
    values[:, :, 3] = 65535
    dark = decode(DEEP[form](values), size=6)
    assert dark.pixels.max() < 16 and NEARLY_BLACK in dark.notes
    values[0, 0, :3] = 60_000
    bright = decode(DEEP[form](values), size=6)
    assert bright.pixels.max() > 200 and NEARLY_BLACK not in bright.notes
    assert any(note.startswith("16-bit") for note in bright.notes)


def test_a_grey_image_that_is_black_is_just_that():
    assert NEARLY_BLACK not in decode(encoded(np.zeros((4, 4), np.uint16)), size=4).notes


# -- the header alone, and bytes gone wrong


@pytest.mark.parametrize("form", FORMATS)
def test_size_of_reads_the_header_alone(form):
    data = encoded(noise(60, 90), form)
    assert size_of(data)[:2] == (90, 60)
    if form not in ("WEBP", "TIFF"):
        assert size_of(data[: len(data) // 2 + 700])[:2] == (90, 60)


def mutated(data, rng):
    data = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(0, min(len(data), 400 if rng.random() < 0.7 else len(data))))
        action = rng.integers(0, 4)
        if action == 0:
            data[at] = int(rng.integers(0, 256))
        elif action == 1:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif action == 2:
            data[at : at + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(0, 9)))
        else:
            data[at : at + 4] = b"\xff\xff\xff\xff" if rng.random() < 0.5 else bytes(4)
        if len(data) < 2:
            break
    return bytes(data)


@pytest.mark.parametrize("form", FORMATS)
def test_mutated_bytes_give_a_image_or_a_reason_and_nothing_else(form, capfd):
    rng = np.random.default_rng(sum(form.encode()))
    options = {"exif": exif(6)} if form in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    frames = [Image.fromarray(noise(9, 11, seed=s)) for s in range(2)]
    seeds = [encoded(frames[0], form, **options), encoded(frames[0].convert("L"), form)]
    if form in ("GIF", "PNG", "TIFF", "WEBP"):
        seeds.append(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
    if form == "TIFF":
        seeds.append(encoded(frames[0], form, compression="tiff_lzw"))
    seen = {DecodedImage: 0, BadImage: 0}
    for turn in range(600):
        data = mutated(seeds[turn % len(seeds)], rng)
        try:
            decoded = decode(
                data, size=8, resize_mode=RESIZE_MODES[turn % 3], channels=(1, 3)[turn % 2], max_pixels=1_000_000
            )
            assert decoded.pixels.shape == (8, 8, (1, 3)[turn % 2])
            seen[DecodedImage] += 1
        except BadImage as error:
            assert str(error).isprintable() and str(error)
            seen[BadImage] += 1
    assert min(seen.values()) > 0
