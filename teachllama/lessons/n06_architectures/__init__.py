"""Lesson 06: architectures as data."""
