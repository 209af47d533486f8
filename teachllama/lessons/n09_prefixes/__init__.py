"""Lesson 09: the same beginning, prefixes."""
