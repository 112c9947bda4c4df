"""Whole models, which are made of no other slots."""
