"""Each tutorial becomes a notebook that runs from top to bottom, without a network."""

import runpy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "scripts" / "notebooks.py"))
TUTORIALS = SCRIPT["tutorials"]()

PAGE = """# Title

Text with a [link](other.md). [Download](page.ipynb).

=== "Python"

    ```python
    x = 1
    ```

=== "Command line"

    ```console
    skipway train digits
    ```

```python
print(x)
```

```text title="Output"
1
```

!!! note "Remember"

    A note.
"""


def test_the_cells_of_a_page():
    install, *cells = SCRIPT["cells"](PAGE)
    assert install[0] == "code" and "pip install" in install[1]
    assert cells == [
        ("markdown", "# Title\n\nText with a link."),
        ("code", "x = 1"),
        ("markdown", "**Command line**\n\n```console\nskipway train digits\n```"),
        ("code", "print(x)"),
        ("markdown", "**Remember**\n\nA note."),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_notebook_of_every_tutorial_runs(page, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.reads(SCRIPT["text"](page), as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
