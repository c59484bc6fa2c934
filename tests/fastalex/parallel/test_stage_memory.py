"""Memory of the stages of a pipeline."""

import pytest

from fastalex import build_architecture
from fastalex.network.footprint import layer_costs
from fastalex.parallel.partition import partition
from fastalex.parallel.stage_memory import StageMemory, stage_memory

ARCHITECTURE = build_architecture("krizhevsky")
LAYERS = layer_costs(ARCHITECTURE, "fp32", "native")


def test_one_stage_holds_all_weights():
    whole = stage_memory(ARCHITECTURE, LAYERS, [ARCHITECTURE.block_names], 1, "1f1b", "fp32")[0]
    assert whole.weights == 4 * 60_965_224


@pytest.mark.parametrize(("schedule", "in_flight"), [("1f1b", 2 / 4), ("eager-1f1b", 3 / 4), ("gpipe", 1.0)])
def test_stages_share_the_network_and_hold_the_micro_batches_in_flight(schedule, in_flight):
    whole = stage_memory(ARCHITECTURE, LAYERS, [ARCHITECTURE.block_names], 1, "1f1b", "fp32")[0]
    stages = stage_memory(ARCHITECTURE, LAYERS, partition(ARCHITECTURE, 2), 4, schedule, "fp32")
    assert sum(stage.fixed for stage in stages) == whole.fixed
    assert sum(stage.activations for stage in stages) == whole.activations
    assert stages[0].in_flight == in_flight
    assert stages[1].largest_batch(stages[1].total(256)) == 256
    assert stages[1].largest_batch(1) == 0


def test_deferred_weight_gradients_keep_their_operands_unless_there_are_many_micro_batches():
    few, many = (
        stage_memory(ARCHITECTURE, LAYERS, partition(ARCHITECTURE, 3), count, "gpipe", "fp32") for count in (4, 12)
    )
    assert [a.whole_batch > b.whole_batch for a, b in zip(few, many, strict=True)] == [False, True, True]


def test_every_byte_of_two_stages_in_bf16_by_hand():
    """Cut after conv2: 256 x 13 x 13 numbers cross, and fc8 computes in fp32 without a copy."""
    layers = layer_costs(ARCHITECTURE, "bf16", "triton")
    first, second = stage_memory(ARCHITECTURE, layers, partition(ARCHITECTURE, 2), 4, "1f1b", "bf16")
    assert (first.blocks, second.blocks[0], second.blocks[-1]) == (("conv1", "conv2"), "conv3", "fc8")
    parameters = 34_944 + 307_456
    assert (first.weights, first.copies) == (4 * parameters, 2 * parameters)
    assert (second.weights, second.copies) == (4 * (60_965_224 - parameters), 2 * (60_965_224 - parameters - 4_097_000))
    assert first.fixed == 3 * first.weights + first.copies
    crossing = 2 * 256 * 13 * 13
    assert first.whole_batch == 4 * 3 * 224 * 224 + crossing  # images in fp32
    pixels, pooled = 13 * 13, 6 * 6
    linear = (256 * pooled + 4096) + (4096 + 4096) + (4096 + 1000)
    convolutions = (256 + 2 * 384) * pixels + (384 + 2 * 384) * pixels + (384 + 2 * 256) * pixels
    assert second.whole_batch == crossing + 2 * (linear + convolutions)
    kept = {layer.name: layer.kept_bytes for layer in layers}
    assert first.activations == kept["conv1"] + kept["conv2"]
    assert (first.in_flight, second.in_flight) == (2 / 4, 1 / 4)
    assert second.per_image == second.activations / 4 + second.whole_batch
    assert second.total(9) == second.fixed + round(9 * second.per_image)
    assert StageMemory(("conv1",), 1, 0, 3, 1 / 4, 0).total(3) == 3 + 2  # 2.25 bytes of three images


def test_a_middle_stage_keeps_what_crosses_both_boundaries():
    split = (("conv1", "conv2"), ("conv3", "conv4", "conv5"), ("fc6", "fc7", "fc8"))
    stages = stage_memory(ARCHITECTURE, LAYERS, split, 12, "eager-1f1b", "fp32")
    assert stages[1].whole_batch == 4 * (256 * 13 * 13 + 256 * 6 * 6)
    assert stages[1].copies == 0
    assert [stage.in_flight for stage in stages] == [5 / 12, 3 / 12, 1 / 12]
    (alone,) = stage_memory(ARCHITECTURE, LAYERS, [ARCHITECTURE.block_names], 4, "gpipe", "fp32")
    assert alone.in_flight == 1 / 4


def test_no_stage_keeps_more_micro_batches_than_there_are():
    stages = stage_memory(ARCHITECTURE, LAYERS, partition(ARCHITECTURE, 3), 2, "eager-1f1b", "fp32")
    assert [stage.in_flight for stage in stages] == [1.0, 1.0, 1 / 2]
