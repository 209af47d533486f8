"""Published models to compute with; they live in `teachllama.lessons.n04_sessions`."""

from teachllama.lessons.n04_sessions.shapes import *  # noqa: F403
