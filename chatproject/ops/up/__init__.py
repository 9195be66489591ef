"""The supervisor behind `manage.py up`: one noun per file, put together in `service.py`."""
