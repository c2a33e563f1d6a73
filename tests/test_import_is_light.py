import json

import pytest
from processes import run_python

HEAVY = {
    "torch",
    "numpy",
    "pandas",
    "PIL",
    "matplotlib",
    "sklearn",
    "scipy",
    "safetensors",
    "jinja2",
    "onnx",
    "torchvision",
    "huggingface_hub",
}


def loaded(code):
    """What a fresh interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nimport json\nsys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr)), done.stdout


HELP = "from skipway.cli.app import app\napp({words}, exit_on_error=False, result_action='return_value')"


@pytest.mark.parametrize(
    "code",
    [
        "import skipway",
        "import skipway; dir(skipway); skipway.Recipe",
        "import skipway.cli",
        *(HELP.format(words=w) for w in (["--help"], ["train", "--help"], ["predict", "--help"], ["--version"])),
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code):
    modules, said = loaded(code)
    assert not modules & HEAVY and len(modules) < 700
    if "--help" in code:
        assert "Usage" in said


def test_the_help_names_every_command_and_every_field_of_a_recipe():
    from skipway.runs.recipe import Recipe

    _, said = loaded(HELP.format(words=["--help"]))
    assert all(c in said for c in ("train", "predict", "evaluate", "find-lr", "check", "summary", "models", "env"))
    _, said = loaded(HELP.format(words=["train", "--help"]))
    assert all("--" + name.replace("_", "-") in said for name in Recipe.names() if name != "data")
    assert "lamb" not in said


def test_every_public_name_is_there_and_no_other():
    import skipway as sw

    assert sorted(dir(sw)) == sorted(sw.__all__)
    assert all(getattr(sw, name) is not None for name in sw.__all__)
    with pytest.raises(AttributeError, match="module 'skipway' has no attribute 'nothing'"):
        sw.nothing  # noqa: B018
