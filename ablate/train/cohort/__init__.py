"""Cohorts: trials of one architecture trained as one program, along a leading model axis.

Kernels of small models leave most of a GPU idle; K models in one program take little longer than one. Each member has
its own parameters, data order, dropout, learning rate, optimizer settings, divergence, files and record.
"""
