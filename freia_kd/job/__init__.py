"""The main job: from a trained classifier to smaller ones and a report, without its data."""

from .job import Job, JobConfig
from .opening import open_job, reopen_job
from .planning import Plan, make_plan
from .run import compress_students, make_students, run_extraction, run_job

__all__ = [
    "Job",
    "JobConfig",
    "Plan",
    "compress_students",
    "make_plan",
    "make_students",
    "open_job",
    "reopen_job",
    "run_extraction",
    "run_job",
]
