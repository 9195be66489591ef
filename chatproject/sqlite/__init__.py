"""A database backend: Django's for SQLite, whose writers wait for each other in short steps."""
