"""What happens before anything works."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(code: str, *paths: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))}
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True)


def test_another_package_of_the_name_kernels_is_named(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("def get_kernel(name): ...\n")
    result = python("import fastalex", tmp_path)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert f"ImportError: the package 'kernels' found at {tmp_path / 'kernels'} is another project's" in last


def test_operators_and_data_know_nothing_of_the_network():
    code = "import sys, {}; sys.exit(any(name.split('.')[0] in {} for name in sys.modules))"
    assert python(code.format("kernels", ("fastalex", "dataloading"))).returncode == 0
    assert python(code.format("dataloading.loading.loader", ("fastalex", "kernels"))).returncode == 0


def test_a_training_step_on_one_device_does_not_import_the_compiler():
    """It would take longer than importing everything else, at the start of every run."""
    code = """
import sys, torch, fastalex.train, kernels
from fastalex.network import AlexNet
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes import build_recipe
model = AlexNet("krizhevsky", num_classes=10, width=0.05)
optimizer = KrizhevskySGD(model, build_recipe("digits"))
optimizer.zero_grad()
loss, _ = kernels.cross_entropy(model(torch.zeros(2, 3, 224, 224), seed=1), torch.tensor([1, 2]))
loss.backward()
optimizer.step()
print(*[name for name in ("torch._dynamo", "torch.distributed.pipelining") if name in sys.modules])
"""
    result = python(code)
    assert (result.stdout.strip(), result.returncode) == ("", 0), result.stderr
