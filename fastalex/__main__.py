"""``fastalex COMMAND ...`` or ``python -m fastalex COMMAND ...``: the commands of this project under one name."""

from __future__ import annotations

import difflib
import runpy
import sys

_COMMANDS = {
    "prepare": ("dataloading.prepare", "turn images into a data set: decode once, check, write shards"),
    "check": ("dataloading.check", "verify every byte and every image of a prepared data set"),
    "standin": ("dataloading.standin", "draw a small stand-in for ImageNet, in its archives"),
    "train": ("fastalex.train", "train AlexNet, on one device or several"),
    "evaluate": ("fastalex.evaluate", "error rates of one network or an ensemble"),
    "predict": ("fastalex.predict", "the most probable classes of your own images"),
    "features": ("fastalex.features", "activations as NumPy, HDF5 or MATLAB files"),
    "show": ("fastalex.show", "a picture of the first layer's kernels, as in the paper's figure 3"),
    "report": ("fastalex.report", "one HTML page that shows what networks have learned"),
    "convert": ("fastalex.convert", "networks of torchvision, Caffe and ONNX become weights"),
    "export": ("fastalex.export", "a network as ONNX, for PyTorch alone, or for torchvision"),
    "plan": ("fastalex.plan", "memory and time of a run, before it starts"),
    "reproduce": ("fastalex.reproduce", "tables, figures and claims of the paper, from the data to one page"),
    "study": ("fastalex.study", "test one of the paper's claims"),
    "baseline": ("fastalex.baseline", "recognition before 2012: SIFT, Fisher vectors, linear SVMs"),
}


def main() -> None:
    """Run the command that is named first, or say what there is."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(_summary())
        return
    if name not in _COMMANDS:
        near = difflib.get_close_matches(name, _COMMANDS, 1)
        hint = f"did you mean {near[0]}? Choose" if near else "choose"
        print(f"error: fastalex has no command {name!r}; {hint} from {', '.join(_COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    module, _ = _COMMANDS[name]
    del sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _summary() -> str:
    """What there is, in a dozen lines."""
    title = "fastalex COMMAND ...: AlexNet (2012), reproduced and fast. fastalex COMMAND --help lists its options."
    return "\n".join([title, *(f"  {name:<9} {what}" for name, (_, what) in _COMMANDS.items())])


if __name__ == "__main__":
    main()
