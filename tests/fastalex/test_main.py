"""`fastalex COMMAND` and `python -m fastalex COMMAND`: every command, and what is no command."""

import subprocess
import sys
from pathlib import Path

from fastalex.__main__ import _COMMANDS
from tests.fastalex.commands import command

ROOT = Path(__file__).parents[2]


def test_every_command_has_a_name():
    """All modules at the top that parse options, by their own names."""
    modules = [path for package in ("fastalex", "dataloading") for path in (ROOT / package).glob("*.py")]
    parsing = [path for path in modules if '__name__ == "__main__"' in path.read_text() and path.stem != "__main__"]
    packages = [path.parent for path in ROOT.glob("*/*/__main__.py") if path.parent.parent.name != "tests"]
    names = {path.stem: f"{path.parent.name}.{path.stem}" for path in [*parsing, *packages]}
    assert {name: module for name, (module, _) in _COMMANDS.items()} == names


def test_it_says_what_there_is(tmp_path):
    for arguments in ((), ("--help",), ("help",)):
        code, out, err = command(tmp_path, "fastalex", *arguments)
        assert (code, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines()[1:]] == list(_COMMANDS)


def test_a_command_runs_as_it_does_alone(tmp_path):
    """With its options, its exit code and its name in messages; also over several workers."""
    alone = command(tmp_path, "fastalex.plan", "--devices", "cpu,cpu", "--arch", "paper")
    assert command(tmp_path, "fastalex", "plan", "--devices", "cpu,cpu", "--arch", "paper") == alone
    assert alone[0] == 0
    code, _, err = command(tmp_path, "fastalex", "plan", "--device", "cpu", "--arch", "papr")
    assert (code, err.count("\n")) == (2, 1)
    small = ["--arch", "four-layer", "-b", "64", "--fraction", "0.1", "--epochs", "1", "--devices", "cpu,cpu"]
    code, out, err = command(tmp_path, "fastalex", "train", *small, "--output", "run")
    assert code == 0, err
    assert "trained and evaluated" in out
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_the_installed_script_is_the_same(tmp_path):
    """Also where a file of the working directory has the name of a package of ours: Python is started in it."""
    script = "import sys; sys.argv = ['fastalex', *sys.argv[1:]]; from fastalex.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", script, "trian"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: fastalex has no command 'trian'; did you mean train? Choose from prepare, ")
    assert done.stderr.count("\n") == 1
