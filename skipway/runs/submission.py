"""Submission of a run: predictions for a test table without the target, in the form of its sample.

Shapes: N rows of the test table, K classes, labels or numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from skipway.data.output_spec import OutputSpec
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import value_text
from skipway.data.tables.columns import as_texts
from skipway.data.tables.id_columns import read_ids
from skipway.data.tables.rows_to_predict import RowsToPredict
from skipway.errors import InputError, printable
from skipway.models.load_model import load
from skipway.models.network_outputs import row_outputs
from skipway.runs.run_csv_tables import write_table
from skipway.utils.format_text import count_of

__all__ = ["SUBMISSION", "write_submission"]

SUBMISSION = "submission.csv"


@dataclass(frozen=True)
class _Form:
    """Columns of a submission.

    Attributes:
        ids: columns that name the rows.
        answers: the other columns.
        outputs: output of the model in each of them; None for a column of classes or joined labels.
        are_shares: True for probabilities, False for labels of 0 and 1, and for numbers.
        remark: warning on a sample that is not followed.
    """

    ids: tuple[str, ...]
    answers: tuple[str, ...]
    outputs: tuple[int, ...] | None
    are_shares: bool = False
    remark: str = ""

    def describe(self, spec: OutputSpec) -> str:
        """Describe the columns in words."""
        if spec.task == "regression":
            meaning = ""
        elif not self.are_shares:
            meaning = " as labels" if spec.task == "multilabel" else " as classes"
        elif len(self.answers) == 1 and self.outputs is not None:
            meaning = f" as the probability of {printable(spec.class_names[self.outputs[0]])!r}"
        else:
            meaning = " as probabilities"
        answers = ", ".join(map(printable, self.answers[:5])) + (", ..." if len(self.answers) > 5 else "")
        return ", ".join([*map(printable, self.ids), answers + meaning])


def write_submission(folder: Path, rows: RowsToPredict) -> list[str]:
    """Predict the rows of a test table with the weights of a run, and write submission.csv.

    Args:
        folder: run folder with its final weights.
        rows: the test table, and the sample of a submission.

    Returns:
        The console lines: where the file is, and warnings; or the reason why there is none.
    """
    try:
        return _write(folder, rows)
    except InputError as error:  # the run itself has ended well
        return [f"warning: no {SUBMISSION}: {printable(error)}"]


def _write(folder: Path, rows: RowsToPredict) -> list[str]:
    network = load(folder / "weights" / "best.safetensors")
    spec, table = network.require_table_spec(), rows.table
    encoded = spec.encode(table)
    values = row_outputs(network, spec, encoded.x)
    if bad := int((~np.isfinite(values)).any(axis=1).sum()):
        return [f"warning: no {SUBMISSION}: the outputs of the model are not finite for {count_of(bad, 'row')}"]
    form = _choose_form(spec, rows)
    order, ids, remark = _choose_rows(rows, form)
    answers = _answers(spec, form, values)
    cells = ([*names, *answers[row]] for row, names in zip(order, ids, strict=True))
    header = (*form.ids, *form.answers)
    write_table(folder / SUBMISSION, header, cells, verbatim=len(header))
    name = printable(Path(table.name).name)
    lines = [f"submission: {folder / SUBMISSION} ({count_of(len(order), 'row')} of {name}: {form.describe(spec)})"]
    if errors := encoded.errors():
        first = min(errors)
        lines.append(
            f"warning: {count_of(len(errors), 'row')} of {name} with cells that cannot be used, which are predicted as "
            f"missing, first {table.row_name(first)}, {errors[first]}"
        )
    notes = [form.remark, remark, *(f"{name}: {line}" for line in encoded.odd_lines)]
    return lines + [f"warning: {text}" for text in notes if text]


def _choose_form(spec: OutputSpec, rows: RowsToPredict) -> _Form:
    """Return the columns of the sample, or the ids and the targets if there is none that can be followed."""
    has_columns = spec.task == "multilabel" and len(spec.target_names) == spec.num_outputs
    outputs = tuple(range(spec.num_outputs)) if has_columns or spec.task == "regression" else None
    usual = _Form(rows.ids, spec.target_names, outputs)
    if rows.sample is None:
        return usual
    sample, name = rows.sample, printable(Path(rows.sample.name).name)
    first, *others = sample.columns
    ids = next((column for column in sample.columns if column in rows.ids), first)
    answers = tuple(column for column in (first, *others) if column != ids)
    if ids not in rows.table.columns and len(sample) != len(rows.table):
        return replace(usual, remark=f"the column {printable(ids)!r} of {name} is not in the test table: not followed")
    places = _places_of(spec, answers)
    if len(places) < len(answers) == len(spec.target_names) == 1:  # a target with the same or another name
        if spec.task == "classification" and spec.num_outputs == 2 and _has_fractions(sample, answers):
            return _Form((ids,), answers, (1,), are_shares=True)
        return _Form((ids,), answers, outputs)
    if not answers or len(places) < len(answers):
        return replace(usual, remark=f"the columns of {name} are neither the targets nor the classes: not followed")
    are_shares = spec.task == "classification" or (spec.task == "multilabel" and _has_fractions(sample, answers))
    return _Form((ids,), answers, places, are_shares=are_shares)


def _places_of(spec: OutputSpec, names: Sequence[str]) -> tuple[int, ...]:
    """Return the outputs with these names: targets, or classes also behind the name of the target."""
    if not spec.class_names:
        places = {name: place for place, name in enumerate(spec.target_names)}
    else:
        places = {f"{spec.target}_{name}": place for place, name in enumerate(spec.class_names)}
        places |= {name: place for place, name in enumerate(spec.class_names)}
    return tuple(places[name] for name in names if name in places)


def _has_fractions(sample: Table, names: Sequence[str]) -> bool:
    """Return True if a cell of these columns is a number with decimals, as probabilities are."""
    texts = chain.from_iterable(as_texts(sample.columns[name]).factorize_present()[1] for name in names)
    return any(number is not None and number % 1 for number in map(_number, texts))


def _answers(spec: OutputSpec, form: _Form, values: np.ndarray) -> list[list[str]]:
    """Return the cells of the answers of N rows, from values (N, K)."""
    if form.outputs is None:
        named = spec.answers(values)
        return [[name if isinstance(name, str) else spec.separator.join(name)] for name in named]
    chosen = values[:, list(form.outputs)].astype(np.float64)
    if spec.task == "multilabel" and not form.are_shares:
        thresholds = np.array(spec.thresholds)[list(form.outputs)]
        return [["1" if is_over else "0" for is_over in row] for row in (chosen >= thresholds).tolist()]
    return [[str(float(f"{number:.7g}")) for number in row] for row in chosen.tolist()]


def _choose_rows(rows: RowsToPredict, form: _Form) -> tuple[list[int], list[list[str]], str]:
    """Return the rows of a submission in its order, the texts of their ids, and a warning or ""."""
    table, sample, all_rows = rows.table, rows.sample, list(range(len(rows.table)))
    own = [read_ids(table, name) for name in form.ids if name in table.columns]
    if sample is None or form.remark:
        texts = [list(cells) for cells in zip(*own, strict=True)] if own else [[]] * len(table)
        return all_rows, texts, ""
    named, name = read_ids(sample, form.ids[0]), printable(Path(sample.name).name)
    if not own:
        return all_rows, [[text] for text in named], f"the ids are those of {name} in its order: the rows have none"
    if named == own[0]:
        return all_rows, [[text] for text in named], ""
    for key in (str, _plain_number):
        places = {key(text): row for row, text in enumerate(own[0])}
        if len(places) == len(table) and all(key(text) in places for text in named):
            return [places[key(text)] for text in named], [[text] for text in named], ""
    return all_rows, [[text] for text in own[0]], f"the ids of {name} are not those of the rows, which are all kept"


def _number(text: str) -> float | None:
    """Return the finite number that a text is, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _plain_number(text: str) -> str:
    """Return a text in which equal numbers are equal, such as "7" for "7.0"."""
    number = _number(text)
    return text if number is None else value_text(number)
