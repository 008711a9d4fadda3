"""Makers of small inputs, shared by all tests."""
