from skipway.training.settings_diff import differences


def test_differences_name_each_field_with_both_values():
    wanted = {
        "name": "resnet",
        "layers": (3, 4, 6, 3),
        "stem": {"kind": "deep", "width": 32},
        "only here": 1,
        "same": [1],
    }
    found = {
        "name": "resnet",
        "layers": [2, 2, 2, 2],
        "stem": {"kind": "deep", "width": 64},
        "only there": None,
        "same": (1,),
    }
    assert differences(wanted, found) == [
        "layers: (3,4,6,3) here, (2,2,2,2) in the checkpoint",
        "stem.width: 32 here, 64 in the checkpoint",
        "only here: 1 here, absent in the checkpoint",
        "only there: absent here, None in the checkpoint",
    ]
    assert differences(wanted, wanted) == []


def test_differences_of_long_lists_name_the_entries_that_differ():
    names = [f"class {i}" for i in range(100)]
    assert differences({"names": names}, {"names": [*names[:50], "x\n", *names[51:]]}) == [
        r"names[50]: 'class 50' here, 'x\n' in the checkpoint"
    ]
    assert differences({"names": names}, {"names": names[1:]}) == [
        "names: 100 values here, 99 values in the checkpoint"
    ]
    assert differences({"a": {"b": 1}}, {"a": 2}) == ["a: {'b': 1} here, 2 in the checkpoint"]
