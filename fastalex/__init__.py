"""A faithful reproduction of AlexNet (Krizhevsky, Sutskever and Hinton, 2012) that trains fast on modern hardware.

The commands are ``python -m fastalex.train``, ``evaluate``, ``features``, ``plan``, ``study`` and ``baseline``. From
Python, :class:`AlexNet` builds a network and :func:`load_model` loads a trained one.
"""

import signal
import sys

# While a command or one of its workers spends seconds on imports, Ctrl-C ends it without a traceback; cli.main or the
# launcher installs its own handler later. (sys.argv[0] is "-m" only until Python has found the module. A process that
# ignores Ctrl-C keeps ignoring it.)
if signal.getsignal(signal.SIGINT) is signal.default_int_handler and (
    sys.argv[:1] == ["-m"] or "--multiprocessing-fork" in sys.orig_argv
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import kernels

if not hasattr(kernels, "lrn_max_pool2d"):  # checked first, because what fails later is harder to understand
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
