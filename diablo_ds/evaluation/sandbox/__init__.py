"""Programs that a model wrote, run behind walls and checked by a process of its own.

A program never shares a process with its tests. It runs in one walled process, the tests in
another; functions are called across, and only plain values come back. So a program that ends
early, compares equal to everything or replaces the checker has failed its tests, not passed them.

The modules `inside`, `solver`, `checker`, `exchange`, `namespaces`, `landlock` and `calls` run in
these processes: they import the standard library alone, and all of it before the walls close.
"""
