"""Measurements of our own speed and scale: `python -m benchmarks --help`, or `make bench`.

Every figure is taken on this machine in this run. Speed is told as a ratio to a plain implementation of the same method
(`plain/`: what it computes equals ours by test) that ran in turn with ours. Figures of other
people's code do not belong here.
"""
