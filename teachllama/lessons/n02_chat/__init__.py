"""Lesson 02: chat and templates."""
