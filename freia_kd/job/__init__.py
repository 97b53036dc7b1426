"""The main job: from a trained classifier to smaller ones and a report, without its data."""

from .job import Job, JobConfig
from .opening import open_job, reopen_job
from .run import run_extraction, run_job

__all__ = ["Job", "JobConfig", "open_job", "reopen_job", "run_extraction", "run_job"]
