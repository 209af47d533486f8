"""Lesson 11: fewer bits."""
