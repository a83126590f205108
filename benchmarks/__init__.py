"""How fast, how lean and how exact anystep is beside diffusers: ``python -m benchmarks`` from the root of a clone.

Never part of the tests: clocks are noise. What can be counted instead is in tests/test_counters.py.
"""
