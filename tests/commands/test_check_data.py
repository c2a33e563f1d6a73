"""The report on a dataset before training."""

import re
import shutil

from table_files import lines

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


def test_check_lists_the_columns_of_a_table_with_style_missing_values_and_an_example(tmp_path):
    rows = [f'"${i:,}.5 ",{i % 7},{"ab"[i // 10 % 2]}' for i in range(900, 1500, 10)]
    said = str(check(lines(tmp_path / "t.csv", "fee,rooms,kind", *rows), target="kind"))
    assert "  column  kind    missing  odd  example   why\n" in said
    style = r"thousands separated by ',', unit '\$'"
    assert re.search(rf"  fee     number  0%       0%   \$1,000.5  numbers around \d+; {style}\n", said)
    assert re.search(r"  rooms   number  0%       0%   4         numbers around \d\n", said)
    assert "  kind    target  0%       -    a         classification\n" in said
