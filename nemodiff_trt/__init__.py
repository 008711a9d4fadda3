"""Tri-mode decoding of Nemotron-Labs-Diffusion checkpoints. Importing this package loads no backend."""
