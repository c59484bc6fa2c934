"""The notebook runs from its first cell to its last, on a smaller network and fewer images."""

import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def check_kept_outputs(code):
    """Its outputs are kept, for who reads it without running it; nothing in them is of one machine."""
    renew = "python docs/notebook.py runs it and keeps its outputs"
    assert all(cell.outputs for cell in code[1:]), renew
    assert [cell for cell in code if has_picture(cell)] == code[2:], renew
    for output in (output for cell in code for output in cell.outputs):
        assert output.get("name") != "stderr", output.text
        assert not re.search(r"\x1b|(^|\s)/\w+/", output.get("text", "")), output.text


def has_picture(cell):
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Jupyter keeps files of its own in the home folder.
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "alexnet.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    check_kept_outputs(code)
    assert code[0].metadata.tags == ["parameters"]
    code[0].source = 'WIDTH, EPOCHS, FRACTION = 0.0625, 1, 0.1\nRUN = "run"'
    # The kernel is this Python, whatever kernels Jupyter knows.
    notebook.metadata.kernelspec.name = "python3"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

    train, predict, kernels, activations, _, effect = (
        "".join(output.text for output in cell.outputs if output.get("name") == "stdout") for cell in code[1:]
    )
    assert "trained and evaluated: top-1 error" in train
    assert "\x1b" not in train  # although Jupyter sets FORCE_COLOR
    assert len(predict.splitlines()) == 3
    assert "fc7:" in activations
    assert re.fullmatch(r"divided by 1\.68 to [\d.]+\n", effect)
    assert [cell for cell in code if has_picture(cell)] == code[2:]
    assert kernels == ""
