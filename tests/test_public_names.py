"""The names that `import skipway as sw` gives, whatever else was imported before."""

import pytest
from processes import run_python

import skipway as sw

LOAD_ALL = """
import pkgutil, importlib, types, skipway
for module in pkgutil.walk_packages(skipway.__path__, "skipway."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
modules = [name for name in skipway.__all__ if isinstance(getattr(skipway, name), types.ModuleType)]
hidden = [name for name in modules if name not in skipway._PACKAGES]
assert not hidden, hidden
"""


def test_no_module_hides_a_public_name():
    done = run_python(LOAD_ALL)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sw.__all__)
def test_every_public_name_has_a_docstring(name):
    assert getattr(sw, name).__doc__


def test_a_name_that_is_not_there_is_said():
    with pytest.raises(AttributeError, match="module 'skipway' has no attribute 'trian'"):
        _ = sw.trian
