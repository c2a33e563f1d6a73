"""The report on a dataset before training."""

import shutil

from skipway.commands.check_data import check


def test_check_says_what_a_careful_eye_sees(place, tmp_path):
    said = str(check(place / "kinds"))
    assert "kinds: 3 classes, 36 train images" in said
    assert "gray; training size 8 px" in said and "ant  train 12" in said
    data = shutil.copytree(place / "kinds", tmp_path / "d")
    (data / "ant" / "bad\x1b.png").write_text("x")
    shutil.copy(data / "ant" / "00.png", data / "ant" / "copy.png")
    said = str(check(data))
    assert "1 unreadable:" in said and "bad\\x1b.png: " in said and "warning: " in said and "\x1b" not in said
