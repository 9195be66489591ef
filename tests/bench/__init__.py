"""Benchmarks: ratios against a peer in the same run, never times as pass or fail."""
