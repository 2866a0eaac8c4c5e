"""Alembic migrations of the store, inside the package so that an installed wheel can use them."""

HEAD = "0001"  # the newest revision; a test compares it with the scripts, so that opening a store needs no alembic
