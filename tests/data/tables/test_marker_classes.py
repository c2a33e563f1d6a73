import numpy as np
import pandas as pd
import pytest

from skipway.commands.evaluate import evaluate
from skipway.data.column_roles import ColumnRoles
from skipway.data.tables.dataset import build_table_dataset
from skipway.data.tables.table_source import open_table_source
from skipway.errors import InputError
from skipway.runs.train_run import train

CODES = ["DE", "FR", "NA", "US"]


def written(tmp_path, codes, sizes=None):
    """A file of 40 rows with a target `code`."""
    rng = np.random.default_rng(0)
    sizes = sizes or [f"{value:.3f}" for value in rng.normal(size=40)]
    rows = [f"{size},{i % 7},{code}" for i, (size, code) in enumerate(zip(sizes, codes, strict=True))]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["size,x,code", *rows]) + "\n")
    return path


def built(path, max_unreadable=1.0, **roles):
    roles = ColumnRoles.of({"target": "code", **roles})
    return build_table_dataset(open_table_source(str(path), roles), 0.2, 0, max_unreadable=max_unreadable)


@pytest.mark.parametrize("name", ["NA", "nan", "null", "N/A"])
def test_a_repeated_text_of_the_target_is_a_class(tmp_path, name):
    rows = built(written(tmp_path, [name, "DE", "FR", "US"] * 10), max_unreadable=0.01)
    assert sorted(rows.spec.class_names) == sorted([name, "DE", "FR", "US"]) and not rows.skipped
    assert (rows.y == rows.spec.class_names.index(name)).sum() == 10
    words = f"target 'code': {name!r} is read as a class (10 rows). Use --missing {name} if it is a missing value"
    assert words in rows.warnings


@pytest.mark.parametrize(
    "codes, sizes, roles, missing",
    [
        (CODES * 10, None, {"missing": "NA"}, 10),
        (CODES * 10, None, {"missing": "code=NA"}, 10),
        (CODES * 10, [f"{i}.5" if i % 5 else "NA" for i in range(40)], {}, 10),  # R writes all missing values as NA
        (["NA"] + ["DE", "FR", "US"] * 13, None, {}, 1),
        (["NA"] * 4 + [""] * 6 + ["DE", "FR"] * 15, None, {}, 10),
        (["NA"] * 4 + ["1", "0"] * 18, None, {}, 4),
        (["?"] * 4 + ["DE", "FR"] * 18, None, {}, 4),
    ],
)
def test_other_texts_are_missing_values(tmp_path, codes, sizes, roles, missing):
    rows = built(written(tmp_path, codes, sizes), **roles)
    assert len(rows.skipped) == missing and not {"NA", "?"} & set(rows.spec.class_names)
    assert not any("read as a class" in warning or "no cell of" in warning for warning in rows.warnings)


def test_empty_cells_stay_missing_next_to_such_a_class(tmp_path):
    rows = built(written(tmp_path, [""] + (CODES * 10)[1:]))
    assert [row.key for row in rows.skipped] == ["t.csv:2"] and "NA" in rows.spec.class_names


def test_such_a_class_is_trained_resumed_and_evaluated(tmp_path):
    path = written(tmp_path, CODES * 10)
    train(path, target="code", epochs=1, output=tmp_path, name="run")
    train(resume=tmp_path / "run", epochs=2)
    result = evaluate(tmp_path / "run", path)
    assert result.count == 40 and "NA" in str(result)
    frame = pd.read_csv(path, keep_default_na=False)
    assert evaluate(tmp_path / "run", frame).count == 40
    path.write_text(path.read_text().replace("NA", ""))
    assert evaluate(tmp_path / "run", path).count == 30
    with pytest.raises(InputError, match="expected a share of missing values"):
        built(path, max_unreadable=0.01)
