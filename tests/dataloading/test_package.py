"""What `import dataloading` gives, and what it does not import."""

import subprocess
import sys

import pytest

import dataloading


def test_importing_brings_neither_dali_nor_pytorch():
    script = (
        "import dataloading, sys; print([m for m in ('torch', 'nvidia.dali', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_exported_name_is_there():
    assert all(getattr(dataloading, name) for name in dataloading.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'Lodaer'"):
        _ = dataloading.Lodaer
