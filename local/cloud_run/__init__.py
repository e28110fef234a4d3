"""Cloud Run on one machine: admin API, HTTP front end, revisions as processes.

Start it with ``python -m local.cloud_run --config FILE``. It is as strict as the
service that it stands for; where Cloud Run's documentation is silent, it refuses.
"""
