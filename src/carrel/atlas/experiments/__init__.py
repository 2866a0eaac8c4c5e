"""One file per method: ``def run(*, seed, **parameters) -> Report``. Imported only in the worker and in tests."""
