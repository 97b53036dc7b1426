"""The main job: from a trained classifier to smaller ones and a report, without its data."""

from .opening import open_job, reopen_job
from .run import Job, compress_students, make_students, run_job

__all__ = ["Job", "compress_students", "make_students", "open_job", "reopen_job", "run_job"]
