"""``carrel compare``: mixers side by side on one problem, tuned alike, over several seeds.

``trial`` and ``speed`` run in the worker and load torch; nothing else here does.
"""
