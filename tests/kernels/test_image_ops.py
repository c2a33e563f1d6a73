"""Zooming by C gives Pillow's bytes, and normalising by C gives torch's numbers."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipway.kernels import build
from skipway.kernels import image_ops as home
from skipway.kernels.image_ops import NORMALIZE, ZOOM

needs_compiler = pytest.mark.skipif(home._library() is None, reason="there is no C compiler")


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
def test_c_gives_the_bytes_of_pillow(seed, packed, size, channels):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (3, packed, packed, channels), np.uint8)
    if seed % 2:
        pixels[pixels < 128], pixels[pixels >= 128] = 0, 255  # where sums come nearest to leaving a byte
    sides = packed * random.uniform(0.05, 1, (5, 2))
    corners = random.uniform(0, 1, (5, 2)) * (packed - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    boxes[0] = 0, 0, packed, packed
    asked = pixels, random.integers(0, 3, 5), boxes, random.random(5) < 0.5, size
    assert ZOOM.fits(*asked)
    assert np.array_equal(ZOOM.fast(*asked), ZOOM.plain(*asked))


@pytest.mark.parametrize("channels", [2, 4, 5, 16])
def test_other_channels_are_zoomed_one_by_one(channels):
    random = np.random.default_rng(channels)
    pixels, rows = random.integers(0, 256, (3, 14, 14, channels), np.uint8), np.array([2, 0])
    boxes, flips = np.array([[1, 2, 11.5, 13], [0, 0, 14, 14]], np.float32), np.array([True, False])
    assert not ZOOM.fits(pixels, rows, boxes, flips, 8)
    zoomed = ZOOM(pixels, rows, boxes, flips, 8)
    for c in range(channels):
        plane = np.ascontiguousarray(pixels[..., c : c + 1])
        assert np.array_equal(zoomed[..., c : c + 1], ZOOM(plane, rows, boxes, flips, 8))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_deep_images_are_zoomed_with_all_their_bits(channels):
    random = np.random.default_rng(channels)
    pixels, rows = random.integers(0, 65536, (3, 14, 14, channels), np.uint16), np.array([2, 0])
    boxes, flips = np.array([[1, 2, 11.5, 13], [0, 0, 14, 14]], np.float32), np.array([True, False])
    assert not ZOOM.fits(pixels, rows, boxes, flips, 14)
    zoomed = ZOOM(pixels, rows, boxes, flips, 14)
    assert zoomed.dtype == np.uint16 and np.array_equal(zoomed[1], pixels[0])
    narrow = ZOOM((pixels >> 8).astype(np.uint8), rows, boxes, flips, 14)
    assert np.abs(zoomed / 256 - narrow - 0.5).max() < 1.6


@pytest.fixture
def library_of_macos(tmp_path, monkeypatch):
    """The library as macOS builds it, without OpenMP, from the compiler here, whose linker has another option."""
    fcntl = pytest.importorskip("fcntl")
    compiler = tmp_path / "cc"
    words = 'for word; do shift; [ "$word" = -dynamiclib ] && word=-shared; set -- "$@" "$word"; done'
    compiler.write_text(f'#!/bin/sh\n{words}\nexec {" ".join(build._compiler())} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")  # its options are those of every compiler

    def path_of(descriptor, request, buffer):
        return os.readlink(f"/proc/self/fd/{descriptor}").encode().ljust(len(buffer), b"\0")

    monkeypatch.setattr(fcntl, "F_GETPATH", 50, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", path_of)
    monkeypatch.setattr(build.sys, "platform", "darwin")
    build.library.cache_clear()
    library = home._library.__wrapped__()
    assert library is not None, build.missing_reason(Path(home.__file__).with_name("image_ops.c"))
    monkeypatch.setattr(home, "_library", lambda: library)
    yield library
    build.library.cache_clear()


@needs_compiler
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fake of macOS reads /proc")
@pytest.mark.parametrize("threads", [1, 3, 8])
def test_without_openmp_the_bytes_are_the_same(library_of_macos, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    random = np.random.default_rng(0)
    pixels, rows = random.integers(0, 256, (4, 30, 30, 3), np.uint8), random.integers(0, 4, 5)
    boxes = np.array([[0, 0, 30, 30], [1.5, 2, 11, 13], [3, 3, 29, 9], [0, 8, 30, 30], [7, 7, 8, 8]], np.float32)
    request = pixels, rows, boxes, random.random(5) < 0.5, 12
    assert np.array_equal(ZOOM.fast(*request), ZOOM.plain(*request))
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    factor, offset = torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1)
    assert torch.equal(NORMALIZE.fast(x, factor, offset), NORMALIZE.plain(x, factor, offset))


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same(threads, monkeypatch):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (4, 30, 30, 3), np.uint8)
    boxes = np.array([[1, 2, 25.5, 20]] * 9, np.float32)
    asked = pixels, np.arange(9) % 4, boxes, np.arange(9) % 2 == 0, 24
    monkeypatch.setattr(home.torch, "get_num_threads", lambda: threads)
    assert np.array_equal(ZOOM.fast(*asked), ZOOM.plain(*asked))


def test_what_c_does_not_take_goes_to_pillow(monkeypatch):
    boxes, flips = np.array([[0, 0, 3, 3]], np.float32), np.array([True])
    pixels = np.arange(2 * 6 * 6 * 3, dtype=np.uint8).reshape(2, 6, 6, 3)
    for odd in (pixels[:, ::2, ::2], pixels[:, :5]):
        assert not ZOOM.fits(odd, np.array([1]), boxes, flips, 4)
        assert ZOOM(odd, np.array([1]), boxes, flips, 4).shape == (1, 4, 4, 3)
    monkeypatch.setenv("SKIPWAY_KERNELS", "off")
    assert not ZOOM.fits(pixels, np.array([1]), boxes, flips, 4)


@needs_compiler
def test_no_memory_is_an_error_and_not_a_image(monkeypatch):
    class Full:
        zoomed = staticmethod(lambda *_: 0)

    monkeypatch.setattr(home, "_library", Full)
    with pytest.raises(MemoryError, match="not enough memory for the buffers of one image"):
        ZOOM.fast(np.zeros((1, 4, 4, 3), np.uint8), np.array([0]), np.zeros((1, 4), np.float32), np.array([False]), 2)


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(1, 21), st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_c_gives_the_numbers_of_torch(seed, count, size, channels):
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (count, size, size, channels), dtype=torch.uint8, generator=random).permute(0, 3, 1, 2)
    factor, offset = torch.randn(2, 1, channels, 1, 1, generator=random)
    assert NORMALIZE.fits(x, factor, offset)
    found, expected = NORMALIZE.fast(x, factor, offset), NORMALIZE.plain(x, factor, offset)
    assert torch.equal(found, expected) and found.stride() == expected.stride()


def test_what_is_not_bytes_in_order_is_normalised_by_torch(monkeypatch):
    factor, offset = torch.full((1, 3, 1, 1), 2.0), torch.ones(1, 3, 1, 1)
    x = torch.arange(24, dtype=torch.uint8).view(1, 3, 2, 4)
    five = torch.arange(40, dtype=torch.uint8).view(1, 2, 4, 5).permute(0, 3, 1, 2)  # 5 channels do not divide a chunk
    assert not NORMALIZE.fits(five, factor, offset)
    for odd in (x, x.float().contiguous(memory_format=torch.channels_last), x[:, :2]):
        of = slice(0, odd.shape[1])
        assert not NORMALIZE.fits(odd, factor[:, of], offset[:, of])
        assert torch.equal(NORMALIZE(odd.clone(), factor[:, of], offset[:, of]), odd.float() * 2 + 1)
    monkeypatch.setenv("SKIPWAY_KERNELS", "off")
    assert not NORMALIZE.fits(x.contiguous(memory_format=torch.channels_last), factor, offset)
