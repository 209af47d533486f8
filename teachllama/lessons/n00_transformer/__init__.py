"""Lesson 00: a transformer in one notebook."""
