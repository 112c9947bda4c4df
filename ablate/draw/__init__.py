"""Drawings of architectures: what a built model is made of, as SVG and in the terminal."""
