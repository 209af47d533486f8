"""Lesson 10: a session that survives."""
