"""Lesson 04: sessions, the KV cache, and memory."""
