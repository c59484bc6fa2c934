"""What all benchmarks share: cases and their checks, timing, memory, tables, charts and records.

A case is one operator at one shape. Each provider computes it; a provider that fails, or whose result or gradients
differ from the definition in fp64, gets no time. All others of a case take turns, and speeds relative to each other are
medians of the ratios within rounds: other work on the machine slows all providers of a round down.

Bandwidth is computed from the fewest bytes that the operator must move and compared with a device-to-device copy, which
takes turns with the providers. Operators bound by arithmetic are compared with a large matrix product instead.

On a GPU, times are those of the device alone: it is kept busy until the host has queued all of the work. On a CPU,
the allocator keeps freed memory, as in training; otherwise a provider would be timed clearing fresh pages.
"""

from harness.benchmark import Benchmark, positive, run_script
from harness.candidates import InPlace
from harness.cases import TOLERANCES, Case, Operator, compiled, failure_reason, image_bytes
from harness.device import CUDA, DEVICE, device_name, slug
from harness.records import RESULTS, ROOT, commit, package_versions, record_name, write_record
from harness.timing import DeviceClock, timed

__all__ = [
    "CUDA",
    "DEVICE",
    "RESULTS",
    "ROOT",
    "TOLERANCES",
    "Benchmark",
    "Case",
    "DeviceClock",
    "InPlace",
    "Operator",
    "commit",
    "compiled",
    "device_name",
    "failure_reason",
    "image_bytes",
    "package_versions",
    "positive",
    "record_name",
    "run_script",
    "slug",
    "timed",
    "write_record",
]
