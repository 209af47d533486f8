"""Lesson 05: performance."""
