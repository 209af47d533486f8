"""Lesson 07: embeddings."""
