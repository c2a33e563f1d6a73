"""Predictions as a table."""

import shutil

from small_runs import table

from skipway.commands.predict import predict
from skipway.commands.prediction_output import write_predictions


def test_a_table_of_predictions_is_harmless_and_has_a_row_each(place, weights, tmp_path):
    hostile = ["=cmd().png", "-x.png", "a\nb.png", "\x1b[2J.png", "<img>.png"]
    for name in hostile[:-1]:
        shutil.copy(place / "kinds" / "ant" / "00.png", name)
    rows = predict(weights, hostile)
    write_predictions(tmp_path / "p.csv", rows, 3)
    found = table(tmp_path / "p.csv")
    assert [r["file"] for r in found] == ["'=cmd().png", "'-x.png", "a\\x0ab.png", "\\x1b[2J.png", "<img>.png"]
    assert [r["status"] for r in found] == ["ok"] * 4 + ["error"] and found[4]["reason"] and not found[4]["label"]
    assert list(found[0]) == [
        "file",
        "status",
        "label",
        "probability",
        "label_2",
        "probability_2",
        "label_3",
        "probability_3",
        "reason",
        "remark",
        "p_ant",
        "p_bee",
        "p_cow",
    ]
