"""Lesson 03: sampling."""
