import threading

import pytest

from skipway.utils.map_ahead import map_ahead


def test_results_come_in_order_and_no_more_than_asked_for_wait():
    taken = []

    def items():
        for i in range(20):
            taken.append(i)
            yield i

    results = map_ahead(lambda i: i * i, items(), threads=3, ahead=4)
    assert next(results) == 0 and len(taken) == 5
    assert list(results) == [i * i for i in range(1, 20)]


def test_an_error_is_raised_in_its_place_and_threads_end():
    results = map_ahead(lambda i: 1 // i, [2, 1, 0, 1], threads=2, ahead=lambda: 1)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("skipway-ahead")]
