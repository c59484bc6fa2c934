"""A network as an ONNX graph, built from its :class:`~fastalex.network.architecture.Architecture`.

The graph is written operator by operator instead of traced: it has ONNX's own LRN, no operator too many, and
every tensor has the name of its activation (``conv1.conv``, ``conv2.norm``, ``fc7``; see
:meth:`fastalex.network.model.AlexNet.activations`). It needs the package ``onnx`` (the extra ``export``) alone.

| step | ONNX |
|---|---|
| convolution | Conv; pads are (top, left, bottom, right) |
| fully connected | Gemm; with groups Split, one Gemm per group, Concat |
| local response normalisation | LRN; with towers Split, one LRN per tower, Concat |
| same-map normalisation | x / (k + alpha * AveragePool(x * x))^beta; the average counts the zeros past the edge |
| max pooling | MaxPool with ceil_mode |
| dropout of 2012 | Mul by 1 - p |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.interchange.preprocessing_module import StoredPreprocessing
from fastalex.network.architecture import (
    Activation,
    ConvBlock,
    LinearBlock,
    LocalResponseNorm,
    MaxPool,
    SameMapNorm,
    Step,
    four_sided,
)
from fastalex.network.blocks import dropout_scale
from fastalex.network.model import AlexNet
from fastalex.network.steps import named_steps_of
from fastalex.optional_packages import require
from fastalex.startup import VERSION

OPSET = 17  # of 2022, which every current runtime reads

_LARGEST = 2**31 - 2**20  # bytes: a file of protocol buffers holds 2 GiB


def build_onnx(
    model: AlexNet, preprocessing: StoredPreprocessing | None = None, metadata: dict[str, str] | None = None
) -> bytes:
    """The content of an ``.onnx`` file: the network in evaluation, with a batch size that is left open.

    Without preprocessing it takes ``images``, float32 N x 3 x C x C (RGB 0-255 minus the mean), and returns ``logits``,
    float32 N x classes. With it, it takes stored images, uint8 N x 3 x S x S, and returns ``probabilities``.

    Args:
        model: in fp32.
        preprocessing: to include.
        metadata: texts for the file's ``metadata_props``.

    Raises:
        ConfigurationError: ``onnx`` is not installed, the weights exceed 2 GiB, or a normalisation over an even number
            of channels, whose window ONNX places differently.
    """
    onnx = require("onnx", "export")
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    if size > _LARGEST:
        raise ConfigurationError(
            f"an ONNX file holds at most 2 GiB, the weights of this network have {size / 2**30:.1f} GiB; export it to "
            "pt2 instead"
        )
    graph = _Graph(onnx)
    architecture = model.architecture
    side = architecture.image_size if preprocessing is None else preprocessing.stored_size
    x = "images"
    if preprocessing is not None:
        x = graph.prepare(x, preprocessing)
    if architecture.input_std is not None:
        x = graph.add("Div", [x, graph.constant("images.std", _per_channel(architecture.input_std))], "images.divided")
    for module in model.blocks():
        block = module.spec
        if isinstance(block, ConvBlock):
            x = graph.convolution(block, module.weight, module.bias, x, architecture.activation)
        else:
            scale = dropout_scale(block, architecture)
            x = graph.linear(block, module.weight, module.bias, x, architecture.activation, scale)
        x = graph.add("Identity", [x], block.name)
    if preprocessing is None:
        output = graph.add("Identity", [x], "logits")
    else:
        output = graph.add("Softmax", [x], "probabilities", axis=1)
    element = onnx.TensorProto.FLOAT if preprocessing is None else onnx.TensorProto.UINT8
    return graph.finish(architecture.name, (element, side), (output, architecture.num_classes), metadata or {})


class _Graph:
    """An ONNX graph that grows from the images on; each node has the name of the tensor it computes."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output, and return its name."""
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Tensor | NDArray[Any]) -> str:
        """Store a tensor under a name, and return the name."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        self._constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def prepare(self, x: str, preprocessing: StoredPreprocessing) -> str:
        """Stored images to the input of the network: the centre crop minus the mean."""
        first, last = preprocessing.offset, preprocessing.offset + preprocessing.crop_size
        ends = {"first": [first, first], "last": [last, last], "axes": [2, 3]}
        bounds = [self.constant(f"images.{name}", np.array(value, np.int64)) for name, value in ends.items()]
        x = self.add("Slice", [x, *bounds], "images.crop")
        x = self.add("Cast", [x], "images.float", to=self._onnx.TensorProto.FLOAT)
        return self.add("Sub", [x, self.constant("images.mean", preprocessing.mean[None])], "images.centred")

    def convolution(self, block: ConvBlock, weight: Tensor, bias: Tensor, x: str, activation: str) -> str:
        """A convolution and the steps that follow it."""
        top, bottom, left, right = four_sided(block.padding)
        names = [self.constant(f"{block.name}.weight", weight), self.constant(f"{block.name}.bias", bias)]
        x = self.add(
            "Conv",
            [x, *names],
            f"{block.name}.conv",
            kernel_shape=[block.kernel_size] * 2,
            strides=[block.stride] * 2,
            pads=[top, left, bottom, right],
            group=block.groups,
        )
        for name, step in named_steps_of(block):
            x = self._step(step, x, f"{block.name}.{name}", activation)
        return x

    def linear(
        self, block: LinearBlock, weight: Tensor, bias: Tensor, x: str, activation: str, scale: float | None
    ) -> str:
        """A fully connected layer with its activation and dropout, which multiplies by ``scale``; None for none."""
        x = self.add("Flatten", [x], f"{block.name}.flattened", axis=1)
        if block.dropout == "before" and scale is not None:
            x = self._scale(x, scale, f"{block.name}.dropout")
        weights, biases = weight.chunk(block.groups), bias.chunk(block.groups)

        def multiply(inputs: str, output: str, group: int) -> str:
            suffix = "" if block.groups == 1 else str(group + 1)
            names = [
                self.constant(f"{block.name}.weight{suffix}", weights[group]),
                self.constant(f"{block.name}.bias{suffix}", biases[group]),
            ]
            return self.add("Gemm", [inputs, *names], output, transB=1)

        x = self._by_group(block.groups, x, f"{block.name}.linear", multiply)
        if block.activation:
            x = self._activate(x, f"{block.name}.activation", activation)
        if block.dropout == "after" and scale is not None:
            x = self._scale(x, scale, f"{block.name}.dropout")
        return x

    def _step(self, step: Step, x: str, name: str, activation: str) -> str:
        match step:
            case Activation():
                return self._activate(x, name, activation)
            case MaxPool(size, stride):
                return self.add("MaxPool", [x], name, kernel_shape=[size] * 2, strides=[stride] * 2, ceil_mode=1)
            case SameMapNorm():
                return self._same_map_norm(step, x, name)
            case LocalResponseNorm(size, alpha, beta, k, towers):
                if size % 2 == 0:
                    raise ConfigurationError(
                        f"{name} normalises over {size} channels, an even number, for which ONNX has another window; "
                        "export it to pt2 instead"
                    )

                def normalise(inputs: str, output: str, _: int) -> str:
                    return self.add("LRN", [inputs], output, size=size, alpha=alpha, beta=beta, bias=k)

                return self._by_group(towers, x, name, normalise)

    def _same_map_norm(self, norm: SameMapNorm, x: str, name: str) -> str:
        """A pixel's window begins ``size // 2`` before it; zeros past the edge count in the average."""
        before, after = norm.size // 2, (norm.size - 1) // 2
        square = self.add("Mul", [x, x], f"{name}.square")
        mean = self.add(
            "AveragePool",
            [square],
            f"{name}.mean",
            kernel_shape=[norm.size] * 2,
            pads=[before, before, after, after],
            count_include_pad=1,
        )
        scaled = self._scale(mean, norm.alpha, f"{name}.scaled")
        total = self.add("Add", [scaled, self._number(f"{name}.k", norm.k)], f"{name}.sum")
        power = self.add("Pow", [total, self._number(f"{name}.beta", norm.beta)], f"{name}.power")
        return self.add("Div", [x, power], name)

    def _by_group(self, groups: int, x: str, output: str, operator: Callable[[str, str, int], str]) -> str:
        """Apply an operator to equal groups of channels or features, one by one; its arguments are input, output and
        the group's number."""
        if groups == 1:
            return operator(x, output, 0)
        parts = [f"{output}.input{group + 1}" for group in range(groups)]
        self._nodes.append(self._onnx.helper.make_node("Split", [x], parts, name=f"{output}.split", axis=1))
        results = [operator(part, f"{output}.group{group + 1}", group) for group, part in enumerate(parts)]
        return self.add("Concat", results, output, axis=1)

    def _activate(self, x: str, name: str, activation: str) -> str:
        return self.add({"relu": "Relu", "tanh": "Tanh"}[activation], [x], name)

    def _scale(self, x: str, factor: float, name: str) -> str:
        return self.add("Mul", [x, self._number(f"{name}.factor", factor)], name)

    def _number(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def finish(self, name: str, images: tuple[int, int], output: tuple[str, int], metadata: dict[str, str]) -> bytes:
        """The content of the file, checked, with the shapes of all tensors.

        Args:
            images: element type and side of the input.
            output: name and features.
        """
        helper = self._onnx.helper
        element, side = images
        features = output[1]
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info("images", element, ["N", 3, side, side])],
            [helper.make_tensor_value_info(output[0], self._onnx.TensorProto.FLOAT, ["N", features])],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        # The oldest file format that has these operators, so that older runtimes read it.
        version = helper.find_min_ir_version_for(opsets)
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=version,
            producer_name="fastalex",
            producer_version=VERSION,
        )
        helper.set_model_props(model, metadata)
        self._onnx.checker.check_model(model, full_check=True)
        return self._onnx.shape_inference.infer_shapes(model, strict_mode=True).SerializeToString()


def _per_channel(values: Sequence[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)
