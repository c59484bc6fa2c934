"""Memory of the stages of a pipeline."""

import pytest

from fastalex import build_architecture
from fastalex.network.footprint import layer_costs
from fastalex.parallel.partition import partition
from fastalex.parallel.stage_memory import stage_memory

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
