"""Lesson 01: hello, generation."""
