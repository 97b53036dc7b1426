"""The main job: from a trained classifier to smaller ones and a report, without its data."""

from .opening import open_job, reopen_job
from .run import Job, run_job

__all__ = ["Job", "open_job", "reopen_job", "run_job"]
