"""Which sequences run in the next step. Knows no torch, no Celery, no Redis."""
