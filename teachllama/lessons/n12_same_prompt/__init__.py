"""Lesson 12: same prompt, another answer."""
