"""Cohorts: trials of one architecture trained as one program, along a leading model axis.

The kernels of a small model are too short to fill a GPU, or to outlast the Python that starts them; those of K models
are K times as long. Whether a device gains by it is measured (`worth`). Each member has its own
parameters, data order, dropout, learning rate, optimizer settings, divergence, files and record.
"""
