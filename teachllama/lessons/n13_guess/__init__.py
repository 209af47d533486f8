"""Lesson 13: guess and check, speculative decoding."""
