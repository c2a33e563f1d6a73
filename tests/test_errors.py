import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipway import errors
from skipway.errors import InputError, MissingExtra, ShapeError, SkipwayError, did_you_mean, is_out_of_memory, printable

EXIT_CODES = {
    "SkipwayError": 70,
    "InputError": 2,
    "ShapeError": 2,
    "MissingExtra": 2,
    "NotFiniteError": 3,
    "StorageError": 4,
    "Interrupted": 75,
}
MARKS = ("Cc", "Cf", "Cs", "Zl", "Zp")


@pytest.mark.parametrize("name, code", EXIT_CODES.items())
def test_every_error_has_the_exit_code_of_its_kind(name, code):
    kind = getattr(errors, name)
    assert kind.exit_code == code and issubclass(kind, SkipwayError)


def test_the_table_of_exit_codes_names_every_error():
    found = {n for n in errors.__all__ if isinstance(getattr(errors, n), type)}
    assert found == set(EXIT_CODES)


@pytest.mark.parametrize(
    "name, builtin",
    [
        ("InputError", ValueError),
        ("ShapeError", ValueError),
        ("MissingExtra", ImportError),
        ("StorageError", OSError),
        ("NotFiniteError", ArithmeticError),
    ],
)
def test_an_error_is_also_python_s_own_kind(name, builtin):
    assert issubclass(getattr(errors, name), builtin)


def test_a_shape_error_is_an_input_error():
    assert issubclass(ShapeError, InputError)


def test_a_missing_extra_says_what_for_and_how_to_install_it():
    with pytest.raises(
        MissingExtra,
        match=r"reading Parquet needs the extra 'parquet', .* Run: pip install 'skipway\[parquet\]'",
    ):
        raise MissingExtra("parquet", "reading Parquet")


def test_an_error_keeps_its_kind_when_its_place_is_put_before_it():
    error = ShapeError("no fit").at("Skip at 0")
    assert type(error) is ShapeError and str(error) == "Skip at 0: no fit"


@pytest.mark.parametrize(
    "name, text",
    [("resnet5", " (did you mean resnet5"), ("zzz", ""), ("projekt", " (did you mean project?)"), ("", "")],
)
def test_near_names_are_suggested_and_far_ones_are_not(name, text):
    said = did_you_mean(name, ["project", "pad", "resnet50", "resnet56", "auto"])
    assert said.startswith(text) and bool(said) == bool(text)


def test_at_most_three_names_are_suggested():
    assert did_you_mean("aaa1", [f"aaa{i}" for i in range(9)]).count(",") == 2


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\nb", "a\\x0ab"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
        ("\u2028", "\\u2028"),
        ("é 猫 \U0001f408", "é 猫 \U0001f408"),
        (7, "7"),
    ],
)
def test_hostile_text_is_spelt_out_and_plain_text_left_alone(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Z", "C"])))
def test_printed_text_is_one_line_without_marks_that_act_on_a_terminal(text):
    shown = printable(text)
    assert not any(unicodedata.category(c) in MARKS for c in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode()


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_text_without_such_marks_is_printed_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    "error, lacks",
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (OSError("out of memory.png cannot be read"), False),
        (RuntimeError("sizes do not fit"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(error, lacks):
    assert is_out_of_memory(error) == lacks
