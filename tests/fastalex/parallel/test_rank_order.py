"""The order of passes on a rank, against torch's own schedules."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.testing._internal.distributed.fake_pg import FakeStore

from fastalex.parallel.schedules import rank_order


def test_passes_are_in_the_order_of_torchs_schedules():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.empty(1, 1, device="meta")
        for schedule, kind, stages in (
            ("gpipe", ScheduleGPipe, 1),
            ("1f1b", Schedule1F1B, 1),
            ("interleaved", ScheduleInterleaved1F1B, 4),
        ):
            pipelined = [
                PipelineStage(torch.nn.Linear(1, 1), i, stages, torch.device("cpu"), input_args=(x,), output_args=(x,))
                for i in range(stages)
            ]
            seen: list[tuple[str, int, int]] = []
            for stage in pipelined:
                record_passes(stage, seen)
            one = pipelined if schedule == "interleaved" else pipelined[0]
            kind(one, 4, loss_fn=lambda y, _: y.sum(), scale_grads=False).step(torch.ones(4, 1), target=torch.ones(4))
            assert seen == rank_order(schedule, 0, 1, stages, 4)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("schedule", "local"), [("eager-1f1b", 1), ("interleaved", 2), ("interleaved", 3)])
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 1), (2, 8), (3, 4), (4, 8)])
def test_every_rank_has_the_order_of_torchs_schedule(schedule, local, ranks, micro_batches):
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        x = torch.empty(1, 1, device="meta")
        stages = [
            PipelineStage(
                torch.nn.Linear(1, 1), i * ranks, ranks * local, torch.device("cpu"), input_args=(x,), output_args=(x,)
            )
            for i in range(local)
        ]
        order = ScheduleInterleaved1F1B(stages, micro_batches).pipeline_order
    finally:
        dist.destroy_process_group()
    names = {"FORWARD": "forward", "FULL_BACKWARD": "backward"}
    for rank, actions in order.items():
        expected = [(names[a.computation_type.name], a.stage_index, a.microbatch_index) for a in actions if a]
        assert rank_order(schedule, rank, ranks, ranks * local, micro_batches) == expected


def record_passes(stage: PipelineStage, seen: list[tuple[str, int, int]]) -> None:
    for kind in ("forward", "backward"):
        run = getattr(stage, f"{kind}_one_chunk")

        def recorded(micro_batch, *arguments, run=run, kind=kind, **options):
            seen.append((kind, stage.stage_index, micro_batch))
            return run(micro_batch, *arguments, **options)

        setattr(stage, f"{kind}_one_chunk", recorded)
