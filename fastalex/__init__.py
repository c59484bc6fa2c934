"""The AlexNet of 2012, trained as it was run then."""

import signal
import sys

# While `python -m fastalex.train` or a worker of it imports for some seconds, Ctrl-C shall end it without a traceback;
# cli.main or the launcher then takes over. ("-m" stands there only until the module is found. A process that ignores
# Ctrl-C goes on doing so.)
if signal.getsignal(signal.SIGINT) is signal.default_int_handler and (
    sys.argv[:1] == ["-m"] or "--multiprocessing-fork" in sys.orig_argv
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import kernels

if not hasattr(kernels, "lrn_max_pool2d"):  # before anything that would fail for a reason harder to understand
    raise ImportError(
        f"the package 'kernels' found at {kernels.__path__[0]} is another project's (Hugging Face publishes one of "
        "that name), not fastalex's; install fastalex in an environment of its own"
    )

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import Architecture
from fastalex.network.model import AlexNet
from fastalex.network.published import ARCHITECTURES
from fastalex.network.variation import Variation, build_architecture
from fastalex.network.weights import load_model

__all__ = [
    "ARCHITECTURES",
    "AlexNet",
    "Architecture",
    "ConfigurationError",
    "Variation",
    "build_architecture",
    "load_model",
]
