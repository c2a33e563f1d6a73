"""Roles of columns: names from the options of a run."""

import pytest

from skipway.data.column_roles import NO_ROLES, ColumnRoles
from skipway.errors import InputError
from skipway.runs.recipe import Recipe


def test_lists_of_names_are_lines_of_csv_text():
    roles = ColumnRoles.of({"target": 'a, "b, in cm", ', "ignore": " c ", "features": ("d", "e, f"), "epochs": 3})
    assert roles.target == ("a", "b, in cm") and roles.ignore == ("c",) and roles.features == ("d", "e, f")
    assert ColumnRoles.of({"target": None, "ignore": ""}) == NO_ROLES == ColumnRoles()
    with pytest.raises(InputError, match="cannot read --features .*: expected column names separated by commas"):
        ColumnRoles.of({"features": 'a,"b'})


def test_the_options_of_a_run_are_its_roles():
    recipe = Recipe(data="x.csv", target="a,b", split_column="part", label_sep="|", task="multilabel")
    roles = recipe.roles
    assert (roles.target, roles.split_column, roles.label_sep, roles.task) == (("a", "b"), "part", "|", "multilabel")
    assert roles.single() == {"split_column": "part"}
    fields = set(Recipe.names())
    assert set(ColumnRoles.__dataclass_fields__) <= fields, "every role is an option"


def test_a_target_has_no_other_role():
    for option in ("ignore", "features", "id"):
        with pytest.raises(InputError, match=f"cannot use the column 'y' as --{option}: expected another column, got"):
            ColumnRoles.of({"target": "x,y", option: "y"})
    with pytest.raises(InputError, match="cannot use the column 'x' as --id: .* also --features. Remove it from --id"):
        ColumnRoles.of({"target": "y", "features": "x", "id": "x"})
    with pytest.raises(InputError, match="cannot use --weight-column y: expected another column than --target. Change"):
        ColumnRoles.of({"target": "y", "weight_column": "y"})
