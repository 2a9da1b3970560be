"""`zcache run --limit 2G -- python job.py`: a job's NumPy arrays in a region, and the job as it is.

`run.py` is the command: it keeps a pager (`zcache.pager.keeper`) for as long as the job lives,
starts the job, watches what it takes (`watch.py`), and says so at the end (`report.py`). In the
job, Python begins with `startup/sitecustomize.py`, which is on its PYTHONPATH, and that with
`in_job.py`: as soon as NumPy is there, large arrays lie in a region.
"""
