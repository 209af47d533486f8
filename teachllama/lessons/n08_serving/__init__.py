"""Lesson 08: serving many."""
