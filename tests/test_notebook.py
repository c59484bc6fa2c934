"""The notebook runs from its first cell to its last, on a smaller network and fewer images."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Jupyter keeps files of its own in the home folder.
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "alexnet.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code), "clear the outputs: they make every change of the notebook large"
    assert code[0].metadata.tags == ["parameters"]
    code[0].source = 'WIDTH, EPOCHS, FRACTION = 0.0625, 1, 0.1\nRUN = "run"'
    # The kernel is this Python, whatever kernels Jupyter knows.
    notebook.metadata.kernelspec.name = "python3"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

    train, predict, kernels, activations, _, effect = (
        "".join(output.text for output in cell.outputs if output.get("name") == "stdout") for cell in code[1:]
    )
    assert "trained and evaluated: top-1 error" in train
    assert len(predict.splitlines()) == 3
    assert "fc7:" in activations
    assert "as trained: " in effect
    pictures = [cell for cell in code if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    assert pictures == [code[2], code[3], code[4], code[5]]
    assert kernels == ""
