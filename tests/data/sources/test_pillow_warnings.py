import threading
import warnings

import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin
from processes import HANG, run_python

from skipway.data.sources.pillow_warnings import collect_warnings, number_in

MODULES = (Image, PngImagePlugin, TiffImagePlugin)


def test_importing_leaves_pillow_as_it_is():
    code = (
        "import warnings, skipway.data.sources.decode\n"
        "from PIL import Image, TiffImagePlugin\n"
        "assert Image.warnings is TiffImagePlugin.warnings is warnings"
    )
    assert run_python(code).returncode == 0


def test_pillow_is_as_before_once_the_last_of_several_threads_is_done():
    both_inside, first_left = threading.Barrier(2, timeout=HANG), threading.Event()

    def leave_last():
        with collect_warnings(10):
            both_inside.wait()
            assert first_left.wait(HANG)

    thread = threading.Thread(target=leave_last)
    thread.start()
    with collect_warnings(10):
        both_inside.wait()
    assert all(module.warnings is not warnings for module in MODULES), "another thread still decodes"
    first_left.set()
    thread.join(HANG)
    assert all(module.warnings is warnings for module in MODULES)


def test_pillow_is_as_before_after_an_error():
    with pytest.raises(ValueError, match="in the middle"), collect_warnings(10):
        raise ValueError("in the middle")
    assert all(module.warnings is warnings for module in MODULES)


def test_only_the_thread_that_decodes_collects():
    def warn_elsewhere():
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            TiffImagePlugin.warnings.warn("of another thread", stacklevel=1)
        messages.extend(str(warning.message) for warning in shown)

    messages = []
    with collect_warnings(10) as collected:
        thread = threading.Thread(target=warn_elsewhere)
        thread.start()
        thread.join(HANG)
        assert messages == ["of another thread"] and not collected.any_damage
        TiffImagePlugin.warnings.warn("of this one")
        assert collected.any_damage
        assert TiffImagePlugin.warnings.catch_warnings is warnings.catch_warnings


def test_a_large_image_is_an_error_only_above_the_limit():
    with collect_warnings(100) as collected:
        Image.warnings.warn("Image size (100 pixels) exceeds limit", Image.DecompressionBombWarning)
        assert not collected.any_damage
        with pytest.raises(Image.DecompressionBombError, match="101 pixels"):
            Image.warnings.warn("Image size (101 pixels) exceeds limit", Image.DecompressionBombWarning)
    assert number_in("no number") == 0
