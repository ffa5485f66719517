"""Jobs travel through JSON and come out as they went in."""

from __future__ import annotations

import json
import math

import pytest

from gemmafile.engine.jobs import Job
from gemmafile.errors import BadSettings
from gemmafile.settings import SamplingSettings


def test_a_job_travels_through_json() -> None:
    sampling = SamplingSettings(
        seed=3, temperature=0.0, samplers=("top_k", "temperature"), logit_bias={7: -math.inf, 8: 1.5}
    )
    for job in (Job(1, [1, 2, 3]), Job(2, [4], sampling, 5, False, 1, 2.5, "mean", True)):
        fields = json.loads(json.dumps(job.to_fields()))
        assert Job.from_fields(fields) == job
    assert Job(1, [1, 2, 3]).to_fields() == {"id": 1, "token_ids": [1, 2, 3]}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"id": 1, "token_ids": [1], "colour": "red"},
        {"id": 1, "token_ids": [1], "sampling": {"temprature": 1}},
        {"id": 1, "token_ids": [1], "sampling": {"logit_bias": {"x": 1}}},
        {"id": 1, "token_ids": [1], "sampling": 5},
    ],
)
def test_what_is_no_job_is_said(fields: dict[str, object]) -> None:
    with pytest.raises(BadSettings):
        Job.from_fields(fields)
