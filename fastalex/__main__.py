"""``fastalex COMMAND ...`` or ``python -m fastalex COMMAND ...``: the commands of this project under one name."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import re
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from dataloading.process import SCRIPT
from fastalex.startup import VERSION

_COMMANDS = {
    "prepare": "dataloading.prepare",
    "check": "dataloading.check",
    "standin": "dataloading.standin",
    "train": "fastalex.train",
    "plan": "fastalex.plan",
    "evaluate": "fastalex.evaluate",
    "report": "fastalex.report",
    "predict": "fastalex.predict",
    "features": "fastalex.features",
    "show": "fastalex.show",
    "convert": "fastalex.convert",
    "export": "fastalex.export",
    "reproduce": "fastalex.reproduce",
    "study": "fastalex.study",
    "baseline": "fastalex.baseline",
}

_SHELLS = ("bash", "zsh", "fish")

_SUMMARY = """\
fastalex COMMAND ...: AlexNet (2012), reproduced and fast
  prepare, check, standin     make a data set; verify it; draw a small stand-in
  train, plan                 train; memory and time that training would need
  evaluate, report            error rates; an HTML page on what networks learned
  predict, features, show     classes of images; activations; a picture of conv1
  convert, export             networks of torchvision, Caffe, ONNX, in and out
  reproduce, study, baseline  the whole paper; one of its claims; SIFT before it
fastalex COMMAND --help shows the options people use, --help-all all of them.
python -m fastalex.COMMAND is the same (dataloading.COMMAND: the first three).
source <(fastalex completion bash) lets the tab key complete (also: zsh, fish)"""


def main() -> None:
    """Run the command that is named first, or say what there is."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in _COMMANDS and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # fastalex | head ends without a traceback
    if name in ("-h", "--help", "--help-all", "help"):
        print(_SUMMARY)
    elif name in ("-V", "--version", "version"):
        print(f"fastalex {VERSION}")
    elif name == "completion":
        _print_completion(sys.argv[2:])
    elif name in _COMMANDS:
        if Path(sys.argv[0]).name == "fastalex":  # and not python -m fastalex
            os.environ[SCRIPT] = os.path.abspath(sys.argv[0])
        del sys.argv[1]
        runpy.run_module(_COMMANDS[name], run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(name, _COMMANDS, 1)
        hint = f"did you mean {near[0]}? Choose" if near else "choose"
        _refuse(f"fastalex has no command {name!r}; {hint} from {', '.join(_COMMANDS)}")


def _print_completion(arguments: list[str]) -> None:
    """Print the script that makes a shell complete commands, options and their choices."""
    if len(arguments) != 1 or arguments[0] not in _SHELLS:
        got = f"got {' '.join(arguments)!r}" if arguments else "got none"
        _refuse(f"completion needs the name of one shell, {', '.join(_SHELLS[:-1])} or {_SHELLS[-1]}, {got}")
    import tyro

    options = {name: _options(module) for name, module in _COMMANDS.items()}
    asked, config = ["--tyro-print-completion", arguments[0]], (tyro.conf.DisallowNone,)
    with contextlib.redirect_stdout(io.StringIO()) as script, contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(options, prog="fastalex", args=asked, config=config)
    # tyro would offer each line of a help text as a completion.
    print(re.sub("^COMPLETION_SPEC.*", lambda found: found[0].replace(r"\n", " "), script.getvalue(), flags=re.M))


def _options(module: str) -> Any:
    """What a command parses: in fastalex a class of options, in dataloading the function itself."""
    names = vars(importlib.import_module(module if module != "dataloading.standin" else f"{module}.__main__"))
    return next((value for name, value in names.items() if name.endswith("Options")), None) or names["main"]


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
