"""`fastalex COMMAND` and `python -m fastalex COMMAND`: every command, its help, and what is no command."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastalex
from fastalex.__main__ import _COMMANDS, _SHELLS
from tests.fastalex.commands import command

ROOT = Path(__file__).parents[2]


def test_every_command_has_a_name():
    """All modules at the top that parse options, by their own names."""
    modules = [path for package in ("fastalex", "dataloading") for path in (ROOT / package).glob("*.py")]
    parsing = [path for path in modules if '__name__ == "__main__"' in path.read_text() and path.stem != "__main__"]
    packages = [path.parent for path in ROOT.glob("*/*/__main__.py") if path.parent.parent.name != "tests"]
    names = {path.stem: f"{path.parent.name}.{path.stem}" for path in [*parsing, *packages]}
    assert names == _COMMANDS


def test_it_says_what_there_is(tmp_path):
    said = {command(tmp_path, "fastalex", *arguments) for arguments in ((), ("--help",), ("help",))}
    ((code, out, err),) = said
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80
    named = [name for line in lines[1:-3] for name in re.split(", *", line[2:].split("  ")[0])]
    assert named == list(_COMMANDS)
    assert command(tmp_path, "fastalex", "--version") == (0, f"fastalex {fastalex.__version__}\n", "")


def test_the_script_names_itself_in_help_and_messages(tmp_path):
    script = Path(sys.executable).with_name("fastalex")
    for arguments, said in (
        (("train", "--help"), "usage: fastalex train [DATA] [OPTION ...]"),
        (("prepare", "--help"), "usage: fastalex prepare SOURCE"),
        (("predict", tmp_path / "no.pt", "x.jpg"), "convert it with: fastalex convert FILE OUT.safetensors"),
    ):
        (tmp_path / "no.pt").write_bytes(b"PK\x03\x04")
        environment = {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"}
        done = subprocess.run([script, *arguments], env=environment, capture_output=True, text=True)
        assert said in done.stdout + done.stderr


HELP = f"""
import contextlib, io, re, runpy, sys
def shown(module, word):
    sys.argv = [module, word]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__")
    assert out.getvalue().startswith("usage: "), module
    return len(re.findall("^  -", out.getvalue(), re.M)), out.getvalue()
for module in {tuple(_COMMANDS.values())}:
    (common, text), (everything, _) = shown(module, "--help"), shown(module, "--help-all")
    more = f"\\n--help-all shows {{everything - common}} more options.\\n" if everything > common else ""
    assert common <= 12 and text.endswith(more), (module, common, everything)
    slow = ("torch", "triton", "nvidia", "scipy", "sklearn", "matplotlib", "tensorboard", "cv2")
    print(*(f"{{module}} --help imports {{name}}" for name in slow if name in sys.modules), sep="\\n", end="")
"""


def test_help_shows_a_dozen_options_and_does_not_wait_for_pytorch():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_choices(tmp_path):
    code, script, err = command(tmp_path, "fastalex", "completion", "bash")
    assert (code, err) == (0, "")
    ask = 'COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _tyro_fastalex; echo "${COMPREPLY[@]}"'
    for words, offered in (
        ("fastalex tr", "train"),
        ("fastalex train --device", "--devices"),
        ("fastalex prepare --exi", "--exif"),
        ("fastalex train --arch kri", "krizhevsky"),
    ):
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}", "bash", words], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (f"{offered}\n", "")


def test_completion_needs_a_shell_that_it_knows(tmp_path):
    code, out, err = command(tmp_path, "fastalex", "completion", "csh")
    message = "error: completion needs the name of one shell, bash, zsh or fish, got 'csh'\n"
    assert (code, out, err) == (2, "", message)
    for shell in set(_SHELLS) - {"bash"}:
        code, out, _ = command(tmp_path, "fastalex", "completion", shell)
        assert code == 0
        assert "krizhevsky" in out


def test_a_command_runs_as_it_does_alone(tmp_path):
    """With its options, its exit code and its name in messages; also over several workers."""
    alone = command(tmp_path, "fastalex.plan", "--devices", "cpu,cpu", "--arch", "paper")
    assert command(tmp_path, "fastalex", "plan", "--devices", "cpu,cpu", "--arch", "paper") == alone
    assert alone[0] == 0
    code, _, err = command(tmp_path, "fastalex", "plan", "--device", "cpu", "--arch", "papr")
    assert (code, err.count("\n")) == (2, 1)
    small = ["--width", "0.0625", "-b", "16", "--fraction", "0.05", "--epochs", "1", "--devices", "cpu,cpu"]
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
