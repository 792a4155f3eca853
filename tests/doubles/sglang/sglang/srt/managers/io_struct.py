"""What crosses between the processes."""

from __future__ import annotations

import dataclasses

from sglang.srt.sampling.sampling_params import SamplingParams


@dataclasses.dataclass
class ProfileReq:
    output_dir: str | None = None
    start_step: int | None = None
    num_steps: int | None = None
    activities: list[str] | None = None
    profile_by_stage: bool = False
    with_stack: bool | None = None
    record_shapes: bool | None = None
    profile_id: str | None = None
    merge_profiles: bool = False
    profile_prefix: str | None = None
    profile_stages: list[str] | None = None
    detailed_annotations: bool = False


@dataclasses.dataclass
class GenerateReq:
    """A batch."""

    rids: list[str]
    input_ids: list[list[int]]
    sampling_params: SamplingParams
    return_logprob: bool
    logprob_start_len: int
    top_logprobs_num: int
    stream: bool
